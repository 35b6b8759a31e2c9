"""Alternatives to compare with: three public captioners, and beam search as in tutorials.

The captioners are built from their public configurations (https://huggingface.co/nlpconnect/vit-gpt2-image-captioning,
https://huggingface.co/Salesforce/blip-image-captioning-base, https://huggingface.co/microsoft/git-base-coco) with
random weights, since speed does not depend on them, and generate a fixed number of words.
"""

from collections.abc import Callable

import torch
from PIL import Image
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    CLIPImageProcessor,
    GitConfig,
    GitForCausalLM,
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

Caption = Callable[[list[str], int], object]  # paths of photos, beams


def vit_gpt2(num_words: int) -> Caption:
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(), GPT2Config())
    config.decoder_start_token_id = config.pad_token_id = 50256
    model = VisionEncoderDecoderModel(config).eval()
    return _captioning(model, ViTImageProcessor(), num_words, pad_token_id=50256, decoder_start_token_id=50256)


def blip_base(num_words: int) -> Caption:
    model = BlipForConditionalGeneration(BlipConfig(vision_config={"image_size": 384})).eval()
    return _captioning(model, BlipImageProcessor(), num_words)


def git_base(num_words: int) -> Caption:
    model = GitForCausalLM(GitConfig()).eval()
    start = torch.full((1, 1), 101)
    return _captioning(model, CLIPImageProcessor(), num_words, input_ids=start)


PEERS = {"ViT-GPT2": vit_gpt2, "BLIP-base": blip_base, "GIT-base": git_base}


def _captioning(model, image_processor, num_words: int, input_ids: torch.Tensor | None = None, **settings) -> Caption:
    length = {"min_new_tokens": num_words, "max_new_tokens": num_words, "do_sample": False}

    @torch.inference_mode()
    def caption(paths: list[str], num_beams: int) -> torch.Tensor:
        images = [Image.open(path).convert("RGB") for path in paths]
        inputs = {"pixel_values": image_processor(images=images, return_tensors="pt")["pixel_values"]}
        if input_ids is not None:
            inputs["input_ids"] = input_ids.repeat(len(paths), 1)
        return model.generate(**inputs, num_beams=num_beams, **length, **settings)

    return caption


@torch.inference_mode()
def tutorial_beam_search(model, pixel_values: torch.Tensor, num_beams: int, num_words: int) -> list[int]:
    """Beam search as in image captioning tutorials: one photo, one forward pass per beam, Python lists."""
    encoder_outputs = model.get_encoder()(pixel_values)
    beams = [([model.config.decoder_start_token_id], 0.0, None)]
    for _ in range(num_words):
        candidates = []
        for tokens, score, cache in beams:
            output = model(
                decoder_input_ids=torch.tensor([tokens[-1:]]), encoder_outputs=encoder_outputs, past_key_values=cache
            )
            best = output.logits[0, -1].log_softmax(-1).topk(num_beams)
            for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                candidates.append(([*tokens, token], score + value, output.past_key_values))
        beams = sorted(candidates, key=lambda beam: -beam[1])[:num_beams]
    return beams[0][0]
