"""`pipeline(model=..., trust_remote_code=True)`: images -> captions.

transformers 5 no longer has the task "image-to-text". A checkpoint names this class in its configuration
(`custom_pipelines`) and contains this file, so `pipeline` finds the task by itself, with or without its name.
"""

from typing import Any

from transformers import Pipeline


class GRUCaptionerPipeline(Pipeline):
    """Captions images.

    ```python
    captioner = pipeline(model="user/name", trust_remote_code=True)
    captioner("photo.jpg")                           # [{"generated_text": "two dogs run through the grass"}]
    captioner(["a.jpg", "b.jpg"], batch_size=8)      # [[{"generated_text": ...}], [{"generated_text": ...}]]
    captioner("photo.jpg", text="a brown", num_beams=5, num_return_sequences=3)
    ```

    Args:
        inputs: One image, or a list of them: paths, URLs, PIL images, arrays; see the processor's `load_image`.
        text: Beginning of the captions.
        timeout: Seconds to wait for a URL.
        generate_kwargs: A `dict` of arguments of `generate()`; they may also be given by name.
    """

    _load_processor = True
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _pipeline_calls_generate = False  # so that arguments are passed to generate() unchanged in every release

    def _sanitize_parameters(self, text=None, timeout=None, generate_kwargs=None, **kwargs):
        preprocess = {"text": text, "timeout": timeout}
        preprocess = {name: value for name, value in preprocess.items() if value is not None}
        return preprocess, {**(generate_kwargs or {}), **kwargs}, {}

    def preprocess(self, image, text: str = "", timeout: float = 10.0) -> dict[str, Any]:
        inputs = self.processor(images=self.processor.load_image(image, timeout), text=text)
        return {name: inputs[name] for name in ("pixel_values", "decoder_input_ids")}  # (1, 3, side, side), (1, T)

    def _forward(self, inputs, **generate_kwargs):
        captions = self.model.generate(**inputs, **generate_kwargs)  # (images x captions of each, T)
        return {"captions": captions.unflatten(0, (len(inputs["pixel_values"]), -1))}

    def postprocess(self, outputs) -> list[dict[str, str]]:
        captions = outputs["captions"].flatten(0, -2)  # one image: (captions, T)
        return [{"generated_text": caption} for caption in self.processor.batch_decode(captions)]

    def save_pretrained(self, save_directory, **kwargs):
        """Saves model, processor and code; `kwargs` are passed to the model's `save_pretrained`."""
        self.tokenizer.init_kwargs.pop("dtype", None)  # set by pipeline(dtype=...), and not JSON-serializable
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)


__all__ = ["GRUCaptionerPipeline"]
