"""What `features` and `train` build alike from a configuration: data sets, model, processor, cached regions."""

import dataclasses
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError

from ..captioning import Captioner
from ..data import RegionCache, Regions, View, load_captions, stream_captions
from ..encoders import encoder_folder
from ..hub import public_name
from ..model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor
from ..tokenization import build_tokenizer, special_token_ids
from ..training import DataConfig, TrainingConfig
from ..training.config import flatten_knobs
from ..training.depthwise import use_quick_depthwise_gradients
from .shell import UsageError, one_line

MAX_DEPTH = 20  # groups in groups of a file of knobs, which has two
MAX_SAID = 1000  # characters of what the parser complains of: it repeats what it found


def read_config(argv: Sequence[str], command: str, description: str) -> tuple[TrainingConfig, str]:
    """The resolved configuration, that is the YAML file of `--config` and the command line over it; and its YAML.

    Raises:
        UsageError: A knob is unknown, missing or of the wrong kind; names the nearest known one.
    """
    from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings
    from yaml import YAMLError

    load = get_loader("yaml")

    def load_flat(text: str) -> Any:
        _check_flat(text)
        return load(text)

    set_loader("knobs", load_flat, (YAMLError, ValueError))
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"gru-captioner {command}",
        description=description,
        allow_abbrev=False,
        exit_on_error=False,
        parser_mode="knobs",
    )
    parser.add_argument("--config", action="config", help="YAML file of these knobs")
    parser.add_class_arguments(TrainingConfig)
    try:
        parsed = parser.parse_args(list(argv))
        resolved = parser.dump(parsed, skip_unset=False)
        for group in dataclasses.fields(TrainingConfig):
            if dataclasses.is_dataclass(group.type) and not isinstance(parsed[group.name], Namespace):
                raise UsageError(f"{group.name} is a group of knobs, found {parsed[group.name]!r:.60}.")
        fields = vars(parser.instantiate(parsed))
    except ArgumentError as error:
        raise UsageError(
            f"{one_line(error)[:MAX_SAID]}.{_nearest_knob(str(error))} The knobs: gru-captioner {command} --help"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config is not a text in UTF-8 ({error}).") from error
    return TrainingConfig(**{name: value for name, value in fields.items() if name != "config"}), resolved


def _check_flat(text: str) -> None:
    """Refuses YAML that no knobs are written in, before it is built: brackets in brackets would overflow PyYAML's
    stack, which ends the process, and names of names (`&`, `*`) stand for more than any memory holds.

    Raises:
        ValueError: Names are used, or groups are too deep.
    """
    import yaml

    depth = 0
    for token in yaml.scan(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        kind = type(token).__name__
        depth += kind.endswith("StartToken") - kind.endswith("EndToken")
        if kind == "AliasToken" or depth > MAX_DEPTH:
            raise ValueError(f"knobs are in groups, without names (&, *) and no more than {MAX_DEPTH} groups deep")


def _nearest_knob(complaint: str) -> str:
    """What the caller may have meant by a knob that jsonargparse doesn't know."""
    unknown = re.search(r"arguments: --([\w.]+)", complaint) or re.search(r"Option '(.+)' is not accepted", complaint)
    in_group = re.search(r"Group '(.+)' does not accept option '(.+)'", complaint)
    if not unknown and not in_group:
        return ""
    name = f"{in_group[1]}.{in_group[2]}" if in_group else unknown[1]  # type: ignore[index]
    known = flatten_knobs(dataclasses.asdict(TrainingConfig(DataConfig(source=""), output_dir="")))
    nearest = difflib.get_close_matches(name, known, 1, cutoff=0)[0]
    return f" Did you mean {nearest}?"


class Assembly:
    """What a configuration describes, each part made when it is first asked for. The same on every process.

    Args:
        config: The knobs.
        accelerator: The processes; the first of each machine reads the data first, the others find it read.
    """

    def __init__(self, config: TrainingConfig, accelerator: Any):
        self.config = config
        self.accelerator = accelerator

    @cached_property
    def training_set(self):
        """Rows of the photos to learn from; not with streaming."""
        return _first(self._load(self.config.data.train_split), self.config.data.max_photos)

    @cached_property
    def validation_set(self):
        """Rows of the photos to choose by; held in memory with streaming."""
        most = self.config.validation.max_images
        if self.config.data.streaming:
            return Dataset.from_list(list(self.stream(self.config.data.validation_split).take(most)))
        return _first(self._load(self.config.data.validation_split), most)

    @cached_property
    def known_captions(self) -> list[list[str]]:
        """Captions of each photo that vocabulary and document frequencies are counted on."""
        if not self.config.data.streaming:
            return list(self.training_set["captions"])
        rows = self.stream(self.config.data.train_split).take(self.config.data.streamed_vocabulary)
        return [row["captions"] for row in rows]

    def stream(self, split: str, **share):
        return stream_captions(self.config.data.source, split, **self._reading, **share)

    def _load(self, split: str):
        with self.accelerator.local_main_process_first():
            return load_captions(self.config.data.source, split, **self._reading)

    @property
    def _reading(self) -> dict[str, Any]:
        data = self.config.data
        return {"images": data.images, "max_skipped": data.max_skipped, "allow_urls": data.allow_urls}

    @cached_property
    def processor(self) -> GRUCaptionerProcessor:
        model = self.config.model
        if model.checkpoint is not None:
            return self._checkpoint.processor
        captions = (caption for of_image in self.known_captions for caption in of_image)
        tokenizer = build_tokenizer(captions, **vars(self.config.tokenizer))
        with _loads(model.encoder):
            return GRUCaptionerProcessor.from_encoder_pretrained(self._encoder, tokenizer, model.image_size)

    @cached_property
    def _checkpoint(self) -> Captioner:
        """The captioner to go on from, looked at as every command does that captions."""
        return Captioner.from_pretrained(self.config.model.checkpoint)

    @cached_property
    def _encoder(self) -> str:
        """Folder of the pretrained encoder."""
        with _loads(self.config.model.encoder):
            return str(encoder_folder(self.config.model.encoder))

    @cached_property
    def model(self) -> GRUCaptionerForConditionalGeneration:
        config, tokenizer = self.config, self.processor.tokenizer
        optimization = config.optimization
        if config.model.checkpoint is not None:
            model = self._checkpoint.model
            model.config.dropout = model.decoder.dropout.p = config.model.dropout
        else:
            fields: dict[str, Any] = {**vars(config.model), **special_token_ids(tokenizer)}
            del fields["image_size"], fields["checkpoint"]  # the processor's, and not given
            encoder = fields.pop("encoder")
            with _loads(encoder):
                model = GRUCaptionerForConditionalGeneration.from_encoder_pretrained(self._encoder, **fields)
            encoder_config: Any = model.config.encoder_config
            encoder_config._name_or_path = public_name(encoder)  # which checkpoint and card name it by
        if optimization.attention_penalty and model.config.attention_type == "none":
            raise UsageError("optimization.attention_penalty: this checkpoint has no attention to penalize.")
        validation = config.validation
        model.generation_config.update(
            num_beams=validation.num_beams,
            length_penalty=validation.length_penalty if validation.num_beams > 1 else 1.0,  # else not to be saved
            max_new_tokens=validation.max_new_tokens,
            suppress_tokens=[tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id],
        )
        model.set_encoder_trainable(optimization.encoder_learning_rate is not None, optimization.encoder_first_layer)
        if optimization.gradient_checkpointing:
            model.activation_checkpointing_enable()
        if optimization.compile:
            model.encoder.vision.backbone.compile()
        if not (optimization.gradient_checkpointing or optimization.compile):  # both would run it in another place
            use_quick_depthwise_gradients(model.encoder.vision.backbone)
        return model.to(self.accelerator.device)

    @cached_property
    def cache(self) -> RegionCache:
        processor, model = self.processor, self.model.eval()
        return RegionCache(
            self.config.data.cache_folder,
            model.encoder.vision,
            model.config.encoder_config,
            lambda images: processor(images=images)["pixel_values"],
            processor.image_processor.to_dict(),
            precision=self.config.data.cache_precision,
        )

    @property
    def views(self) -> list[View]:
        """How the photos to learn from are looked at."""
        data = self.config.data
        mirrored = [View(mirror=True)] if data.mirror else []
        return [View(), *mirrored, *(View(crop=number + 1) for number in range(data.crops))]

    @property
    def to_encode(self) -> list[tuple[Dataset, View]]:
        """All that a run with cached regions reads: the photos to learn from in each view, those to choose by whole."""
        return [*((self.training_set, view) for view in self.views), (self.validation_set, View())]

    def regions(self, dataset, view: View) -> Regions:
        """From the cache, or made now by the processes of this machine together."""
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's and accelerate's: those of this machine
        return self.cache.regions(dataset, view, process=self.accelerator.local_process_index, processes=processes)


@contextmanager
def _loads(name: str) -> Iterator[None]:
    """Around what reads a checkpoint or an encoder: says which, where it is damaged or sizes don't fit together."""
    try:
        yield
    except StrictDataclassError as error:
        raise UsageError(str(error.__cause__ or error)) from error
    except (OSError, ValueError):
        raise
    except Exception as error:  # a damaged file raises whatever the library that reads it stumbles over
        raise UsageError(f"{name} can't be loaded ({type(error).__name__}: {one_line(error)[:300]}).") from error


def _first(rows, number: int | None):
    return rows if number is None else rows.select(range(min(number, len(rows))))
