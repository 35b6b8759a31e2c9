"""Teachers: any captioner on the Hub that `transformers` loads as image-text-to-text, or a checkpoint of this package.

All files come from a single commit, weights as safetensors only; a repository's code runs only if requested.
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..checkpoint import Source, UnsafeWeightsError, names_damaged, weights_files
from ..checkpoint_limits import check_encoder, check_layers
from ..errors import UsageError, brief, reason_of
from ..files import CONFIG, WEIGHTS, sha256_of
from ..hub import fetch, public_name
from ..inference.backend import PYTORCH

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


FILES = ("*.json", "*.jinja", "*.txt", "*.model", "model*.safetensors")  # of a repository
CODE = "*.py"
ADAPTER = "adapter_config.json"
CHAT_PROMPT = "Describe this image in one short sentence."
# Default prompts of families that need one. `florence2` has task tokens.
PROMPTS = {
    "florence2": "<CAPTION>",
    "instructblip": "Write a short description of the image.",
    "kosmos-2": "An image of",
    "paligemma": "caption en",
}
# Families that caption without a prompt, even where a repository has a chat template.
PLAIN = ("blip", "blip-2", "git", "pix2struct", "vision-encoder-decoder")
WITHOUT_PROMPT = ("pix2struct", "vision-encoder-decoder")
MAX_NEW_TOKENS = 50
NUM_BEAMS = 3  # for teachers other than chat models, which are large and write well without beams
ENOUGH = 2  # times the teacher's input size: photos are loaded no larger
LARGEST_SIDE = 2048  # pixels, if the teacher has no fixed input size
CONVERTER = "SFconvertbot"  # Hugging Face's bot that opens pull requests with safetensors weights


@dataclass(frozen=True)
class TeacherOptions:
    """How a teacher is loaded and generates captions.

    Args:
        revision: Branch, tag or commit of a repository on the Hub.
        trust_remote_code: Whether Python files of the teacher's repository may run.
        device: Device that torch runs on; by default a GPU if there is one.
        dtype: Precision; by default float32 on a CPU and bfloat16 elsewhere.
        prompt: The prompt; by default the one that its family needs.
        num_beams: Beams for one caption per photo; by default 3, for chat models 1.
        max_new_tokens: Maximum length of a caption; by default 50, or the checkpoint's own for a GRU captioner.
        temperature, top_p: Sampling settings for several captions per photo.
        seed: Seed for sampling.
    """

    revision: str | None = None
    trust_remote_code: bool = False
    device: str | None = None
    dtype: str | None = None
    prompt: str | None = None
    num_beams: int | None = None
    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.temperature <= 10:
            raise UsageError(f"the temperature must be above 0 and at most 10, found {self.temperature:g}.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p must be above 0 and at most 1, found {self.top_p:g}.")


@dataclass(frozen=True)
class Draft:
    """A caption written by a teacher.

    Args:
        text: The raw caption.
        is_cut: Whether it was truncated at the maximum length.
    """

    text: str
    is_cut: bool = False


class Teacher(Protocol):
    """A model that captions photos.

    Attributes:
        name: Hub id, or the folder's name.
        revision: Commit on the Hub, or SHA-256 of a folder's weights.
        prompt: Its prompt; None if it has none.
        side: Maximum useful size of a photo's sides in pixels.
    """

    name: str
    revision: str
    prompt: str | None
    side: int

    def write(self, images: "Sequence[Image]", names: Sequence[str], num_captions: int) -> list[list[Draft]]:
        """`num_captions` per image: one by beam search, several by sampling, seeded by the photo's name."""
        ...

    def settings(self, num_captions: int) -> str:
        """What captions depend on besides the photo and the weights."""
        ...


def load_teacher(name: str, options: TeacherOptions | None = None) -> Teacher:
    """Loads a teacher and captions a grey image with it, so that problems show now.

    Args:
        name: Folder or Hub id.

    Raises:
        FileNotFoundError: No such folder or Hub repository.
        OSError: The Hub failed, timed out or closed the connection.
        UsageError: Not a captioner, or one that needs another prompt or its own code.
        ValueError: Its files are damaged, lack weights or have no safetensors.
    """
    options = options or TeacherOptions()
    source = Source(name, options.revision)
    folder = source.folder(CONFIG)
    commit = source.commit(folder)
    config = _read_config(name, folder / CONFIG)
    teacher: Teacher
    if config.get("model_type") == "gru_captioner":
        teacher = OurTeacher(name, commit, options)
    else:
        if not options.trust_remote_code:
            check_layers(f"teacher {name}", config)
            check_encoder(name, config)
        if commit is not None:
            files = (*FILES, CODE) if options.trust_remote_code else FILES
            folder = fetch(name, files, revision=commit)
        weights = _weights(name, folder, commit)
        teacher = HubTeacher(name, folder, commit or _fingerprint(weights), options)
    _try_out(teacher, name)
    return teacher


class OurTeacher:
    """A checkpoint of this package."""

    def __init__(self, name: str, commit: str | None, options: TeacherOptions):
        from ..captioner import Captioner

        if options.prompt:
            raise UsageError(f"{name} is a GRU captioner, which takes no prompt: omit --prompt.")
        device = _device(options.device)
        self._captioner: Captioner = Captioner.from_pretrained(
            name,
            revision=commit or options.revision,
            device=device,
            dtype=options.dtype or "float32",
            backend=PYTORCH,  # supports sampling, and any device
        )
        self._options = options
        self.name = public_name(name)
        self.revision = commit or _fingerprint([Path(name) / WEIGHTS])
        self.prompt: str | None = None
        self.side = ENOUGH * max(self._captioner.processor.image_size or (LARGEST_SIDE,))

    def write(self, images: "Sequence[Image]", names: Sequence[str], num_captions: int) -> list[list[Draft]]:
        generation = _generation(self._options, names, num_captions, self._options.num_beams)
        generation["max_new_tokens"] = self._options.max_new_tokens
        generation = {name: value for name, value in generation.items() if value is not None}  # the checkpoint's own
        captions = self._captioner.decode(self._captioner.encode(images), num_captions, **generation)
        return [[Draft(caption.text) for caption in image_captions] for image_captions in captions]

    def settings(self, num_captions: int) -> str:
        return _settings(self._options, None, num_captions, self._options.num_beams or self._captioner.num_beams)


class HubTeacher:
    """A model that `transformers` loads as image-text-to-text, of any family."""

    def __init__(self, name: str, folder: Path, revision: str, options: TeacherOptions):
        import torch

        self.name, self.revision = public_name(name), revision
        self._options = options
        device = _device(options.device)
        dtype = getattr(torch, options.dtype or ("float32" if device == "cpu" else "bfloat16"))
        with names_damaged(f"the teacher {name}", UsageError, ImportError):
            self._model = _load_model(name, folder, dtype, options.trust_remote_code).to(device).eval()
            self._image_processor, self._tokenizer, self._processor = _load_processor(
                name, folder, options.trust_remote_code
            )
        self._family = str(self._model.config.model_type)
        self._takes_token_types = "token_type_ids" in inspect.signature(self._model.forward).parameters
        self._is_chat = self._family not in PLAIN and bool(getattr(self._processor, "chat_template", None))
        if options.prompt and self._family in WITHOUT_PROMPT:
            raise UsageError(f"{name} takes no prompt: omit --prompt.")
        self.prompt = options.prompt or PROMPTS.get(self._family) or (CHAT_PROMPT if self._is_chat else None)
        self._num_beams = options.num_beams or (1 if self._is_chat else NUM_BEAMS)
        self._max_new_tokens = options.max_new_tokens or MAX_NEW_TOKENS
        self.side = _side(self._image_processor)
        if self._tokenizer is not None:
            self._tokenizer.padding_side = "left"  # captions of a batch start together if prompts differ in length

    def write(self, images: "Sequence[Image]", names: Sequence[str], num_captions: int) -> list[list[Draft]]:
        import torch

        inputs = self._inputs(images).to(self._model.device, self._model.dtype)  # the dtype applies to floats only
        if not self._takes_token_types:
            inputs.pop("token_type_ids", None)
        generation = _generation(self._options, names, num_captions, self._num_beams)
        with torch.inference_mode():
            sequences = self._model.generate(
                **inputs, **generation, num_return_sequences=num_captions, max_new_tokens=self._max_new_tokens
            )
        drafts = self._drafts(sequences.cpu(), inputs.get("input_ids"), num_captions)
        return [drafts[start : start + num_captions] for start in range(0, len(drafts), num_captions)]

    def settings(self, num_captions: int) -> str:
        return _settings(self._options, self.prompt, num_captions, self._num_beams)

    def _inputs(self, images: "Sequence[Image]") -> Any:
        if self._is_chat:
            conversations = [
                [
                    {
                        "role": "user",
                        "content": [{"type": "image", "image": image}, {"type": "text", "text": self.prompt}],
                    }
                ]
                for image in images
            ]
            return self._processor.apply_chat_template(
                conversations,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        if self._processor is None or self.prompt is None:
            return self._image_processor(list(images), return_tensors="pt")
        text, settings = self.prompt, {}
        if self._family == "git":  # its caption continues the prompt, which must not have an end token
            text, settings = f"{self._tokenizer.cls_token}{text}", {"add_special_tokens": False}
        return self._processor(
            images=list(images), text=[text] * len(images), padding=True, return_tensors="pt", **settings
        )

    def _drafts(self, sequences: "torch.Tensor", prompts: "torch.Tensor | None", num_captions: int) -> list[Draft]:
        special = set(self._tokenizer.all_special_ids)
        rows = sequences.tolist()  # (N, T)
        if prompts is not None and not self._model.config.is_encoder_decoder:
            prefixes = [row for row in prompts.tolist() for _ in range(num_captions)]
            pairs = zip(rows, prefixes, strict=True)
            rows = [row[len(prefix) :] if row[: len(prefix)] == prefix else row for row, prefix in pairs]
        return [
            Draft(
                self._tokenizer.decode(row, skip_special_tokens=True).strip(),
                is_cut=len(row) >= self._max_new_tokens and row[-1] not in special,
            )
            for row in rows
        ]


def _generation(
    options: TeacherOptions, names: Sequence[str], num_captions: int, num_beams: int | None
) -> dict[str, Any]:
    """Generation settings."""
    if num_captions == 1:
        return {"do_sample": False, "num_beams": num_beams}
    from .sampling import samplers

    steps = samplers(
        names, num_captions, temperature=options.temperature, top_p=options.top_p, seed=options.seed
    )  # replace generate()'s own, whose samples depend on the batch
    return {
        "do_sample": True,
        "num_beams": 1,
        "top_k": 0,
        "top_p": 1.0,
        "temperature": 1.0,
        "logits_processor": steps,
    }


def _settings(options: TeacherOptions, prompt: str | None, num_captions: int, num_beams: int) -> str:
    how = f"{num_beams} beams"
    if num_captions > 1:
        how = f"{num_captions} samples, temperature {options.temperature:g}, top-p {options.top_p:g}, "
        how += f"seed {options.seed}"
    prompted = f", prompt {json.dumps(prompt, ensure_ascii=False)}" if prompt else ""
    tokens = f", at most {options.max_new_tokens} tokens" if options.max_new_tokens else ""
    return f"{how}{tokens}{prompted}"


def _read_config(name: str, path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UsageError(f"{name} is not a captioner: it has no {CONFIG}.")
    try:
        config = json.loads(path.read_bytes())
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{name} is not a captioner: its {CONFIG} can't be read ({brief(error)}).") from error
    if not isinstance(config, dict):
        raise ValueError(f"{name} is not a captioner: its {CONFIG} is not a JSON object.")
    return config


def _weights(name: str, folder: Path, commit: str | None) -> Sequence[Path]:
    if (folder / ADAPTER).exists():
        raise UsageError(f"{name} is an adapter of another model: merge it into the weights, and save both as one.")
    try:
        return weights_files(f"teacher {name}", folder)
    except UnsafeWeightsError as error:
        revision = _converted(name) if commit is not None else None
        if revision is None:
            raise
        raise UnsafeWeightsError(
            f"the teacher {name} has no safetensors weights, and other formats are not loaded: a pickle can run any "
            f"code. Hugging Face's {CONVERTER} has converted them: add --revision {revision}"
        ) from error


def _converted(repo_id: str) -> str | None:
    """The pull request with a repository's weights as safetensors, if Hugging Face's bot has opened one."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    with suppress(HTTPError, OSError, ValueError):
        for discussion in HfApi().get_repo_discussions(repo_id, author=CONVERTER, discussion_type="pull_request"):
            if "safetensors" in discussion.title and discussion.status in ("open", "draft"):
                return f"refs/pr/{discussion.num}"
    return None


def _fingerprint(weights: Sequence[Path]) -> str:
    """A hash that identifies the weights of a folder."""
    return "sha256:" + "-".join(sha256_of(path)[:16] for path in weights)


def _load_model(name: str, folder: Path, dtype: Any, trust_remote_code: bool) -> Any:
    import transformers
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise UsageError(
                f"{name} has its own code, which could do anything on this machine. Read it, and if you trust it, add "
                "--trust-remote-code with --revision COMMIT; or choose a teacher that transformers supports."
            ) from error
        raise
    own = getattr(config, "auto_map", None) or {}
    names = ["AutoModelForImageTextToText", "AutoModelForMultimodalLM"]
    if trust_remote_code and own:
        names += ["AutoModelForCausalLM", "AutoModel"]
    for class_name in names:
        auto_class = getattr(transformers, class_name, None)
        if auto_class is not None and (type(config) in auto_class._model_mapping or class_name in own):
            break
    else:
        raise UsageError(
            f"{name} is of type {config.model_type!r}, which doesn't caption images. Teachers are, for instance, BLIP, "
            "BLIP-2, GIT, ViT-GPT2, Florence-2 and SmolVLM, or a checkpoint of this package."
        )
    model, loading = auto_class.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
    )
    missing = sorted(key for key in loading["missing_keys"] if "pooler" not in key)  # captioners don't use it
    if missing:
        raise UsageError(
            f"{name} lacks weights of a {config.model_type} ({len(missing)}, such as {missing[0]}): it was not saved "
            "by transformers, or it is not a captioner."
        )
    return model


def _load_processor(name: str, folder: Path, trust_remote_code: bool) -> tuple[Any, Any, Any]:
    """Image processor, tokenizer, and the processor that wraps them, which older models lack."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    processor = None
    with suppress(OSError, ValueError):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
    image_processor = getattr(processor, "image_processor", None)
    tokenizer = getattr(processor, "tokenizer", None)
    if image_processor is not None and tokenizer is not None:
        return image_processor, tokenizer, processor
    try:
        image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UsageError(f"{name} has no processor that transformers can load: {brief(error)}") from error
    return image_processor, tokenizer, None


def _side(image_processor: Any) -> int:
    sides = [side for side in dict(getattr(image_processor, "size", None) or {}).values() if isinstance(side, int)]
    return min(ENOUGH * max(sides), ENOUGH * LARGEST_SIDE) if sides else LARGEST_SIDE


def _device(wanted: str | None) -> str:
    import torch

    if wanted is not None:
        return wanted
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _try_out(teacher: Teacher, name: str) -> None:
    """
    Raises:
        UsageError: It can't caption a grey image; with the reason.
    """
    from PIL import Image

    try:
        teacher.write([Image.new("RGB", (64, 48), "grey")] * 2, ["", ""], 2)
    except Exception as error:  # families raise errors of any kind
        prompt = "" if teacher.prompt else " If it needs a prompt, add --prompt."
        raise UsageError(f"the teacher {name} can't caption an image ({reason_of(error)}).{prompt}") from error
