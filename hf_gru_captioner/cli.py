"""The command `gru-captioner`, and the one place that wires the rooms together.

Heavy imports stand inside the commands, so that `--help` is quick. A user's mistake ends in one line and exit code 2.
"""

import argparse
import glob
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BAD_INPUT = 2  # exit code


class UsageError(Exception):
    """Something that the caller of the command can put right; its text says how."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["train"]:  # has a parser of its own, made from the configuration's dataclasses
        return _guarded(train, argv[1:])
    parser = argparse.ArgumentParser(prog="gru-captioner", description="Captions photos on a plain CPU.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_caption_command(commands)
    commands.add_parser("train", help="train a captioner: gru-captioner train --config FILE", add_help=False)
    arguments = parser.parse_args(argv)
    return _guarded(arguments.run, arguments)


def _guarded(command, arguments) -> int:
    try:
        return command(arguments)
    except (UsageError, FileNotFoundError, ValueError) as error:
        if os.environ.get("GRU_CAPTIONER_DEBUG"):
            raise
        print(f"gru-captioner: {_one_line(error)}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:  # the reader of our output, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


# ---------------------------------------------------------------------------------------------------------- caption


def _add_caption_command(commands) -> None:
    parser = commands.add_parser(
        "caption",
        help="write captions of photos",
        description="Writes a caption of each photo.",
        epilog="Exit code 0 when every photo was captioned, 2 when something could not be read.",
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="photo, address, folder of photos, or pattern ('*.jpg')"
    )
    parser.add_argument("--checkpoint", help="folder or Hub id; the checkpoint of the package when not given")
    parser.add_argument(
        "--json", action="store_true", help='one object a line: {"path", "caption", "score"} or {"path", "error"}'
    )
    parser.add_argument("--num-beams", type=_positive, help="beams of the search; the checkpoint's own when not given")
    parser.add_argument("--num-captions", type=_positive, default=1, help="captions of each photo, the best first")
    parser.add_argument("--batch-size", type=_positive, default=16, help="photos captioned at once")
    parser.add_argument("--attention", type=Path, metavar="DIR", help="draw where the model looked, a PNG a photo")
    parser.set_defaults(run=caption)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, found {number}")
    return number


def caption(arguments: argparse.Namespace) -> int:
    """`gru-captioner caption`: prints a caption a photo, reports those that can't be read, goes on with the rest."""
    paths = list(_find_photos(arguments.paths))
    _quiet_transformers()
    from tqdm import tqdm

    from .captioning import Captioner

    captioner = Captioner.from_pretrained(arguments.checkpoint)
    generation = {} if arguments.num_beams is None else {"num_beams": arguments.num_beams}
    beams = generation.get("num_beams", captioner.model.generation_config.num_beams or 1)
    if arguments.num_captions > beams:
        raise UsageError(
            f"{arguments.num_captions} captions of a photo need at least as many beams, found {beams}: add "
            f"--num-beams {arguments.num_captions}."
        )
    if arguments.attention is not None:
        arguments.attention.mkdir(parents=True, exist_ok=True)

    failures = 0
    progress = tqdm(
        total=len(paths), unit="photo", disable=len(paths) <= arguments.batch_size or not sys.stderr.isatty()
    )
    with progress:
        for start in range(0, len(paths), arguments.batch_size):
            batch = paths[start : start + arguments.batch_size]
            images, errors = _load_images(batch)
            captions = iter(
                captioner(list(images.values()), num_captions=arguments.num_captions, **generation) if images else []
            )
            for path in batch:
                if path in errors:
                    failures += 1
                    _report_failure(path, errors[path], arguments.json)
                    continue
                of_photo = next(captions)
                for each in of_photo:
                    _print_caption(path, each, arguments.json)
                if arguments.attention is not None:
                    _save_attention(arguments.attention, path, images[path], of_photo[0])
            progress.update(len(batch))
    return BAD_INPUT if failures else 0


def _find_photos(patterns: Sequence[str]) -> Iterator[str]:
    """Files, addresses, the images in folders, and what patterns match, in order, each once."""
    from PIL import Image

    endings = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
    found: dict[str, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            inside = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in endings)
            if not inside:
                raise UsageError(f"{pattern}: no images in this folder.")
            found.update(dict.fromkeys(inside))
        elif not path.exists() and glob.has_magic(pattern):
            matches = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
            if not matches:
                raise UsageError(f"{pattern}: no file matches.")
            found.update(dict.fromkeys(matches))
        else:
            found[pattern] = None
    return iter(found)


def _load_images(paths: Sequence[str]):
    """Photos that can be read, and what is wrong with the others, both by path."""
    from .model import load_image

    images, errors = {}, {}
    for path in paths:
        try:
            images[path] = load_image(path)
        except (OSError, ValueError) as error:
            errors[path] = _one_line(error)
    return images, errors


def _print_caption(path: str, each, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"path": path, "caption": each.text, "score": round(each.score, 4)}, ensure_ascii=False))
    else:
        print(f"{path}: {each.text}")


def _report_failure(path: str, error: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"path": path, "error": error}, ensure_ascii=False))
    else:
        print(f"gru-captioner: {error}", file=sys.stderr)


def _save_attention(folder: Path, path: str, image, each) -> None:
    from .visualization import draw_attention

    target = folder / f"{Path(path).name}.attention.png"
    aside = target.with_suffix(".partial")
    draw_attention(image, each.words, each.attention).save(aside, format="PNG")
    aside.replace(target)


def _quiet_transformers() -> None:
    """A command that prints captions shows no bars of the weights it loads."""
    from transformers.utils import logging

    logging.disable_progress_bar()


# ------------------------------------------------------------------------------------------------------------ train


def train(argv: Sequence[str]) -> int:
    """`gru-captioner train`, and `accelerate launch scripts/train.py`. Runs on every process.

    Everything that a cache or a checkpoint is written to is written by the main process alone.
    """
    config = _training_config(argv)

    import torch
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from torch.utils.data import DataLoader, TensorDataset
    from tqdm import tqdm

    from .data import CaptionCollator, CaptionedRegions, cache_regions, load_captions
    from .evaluation import score_captions
    from .model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor
    from .tokenization import build_tokenizer, special_token_ids
    from .training import CaptionTrainer, write_captions

    optimization, validation = config.optimization, config.validation
    accelerator = Accelerator(mixed_precision=optimization.mixed_precision)
    set_seed(optimization.seed)
    with accelerator.main_process_first():
        training_set = load_captions(config.data.source, config.data.train_split)
        validation_set = load_captions(config.data.source, config.data.validation_split)
    captions = list(training_set["captions"])
    tokenizer = build_tokenizer((each for of_image in captions for each in of_image), **vars(config.tokenizer))
    processor = GRUCaptionerProcessor.from_encoder_pretrained(config.model.encoder, tokenizer, config.model.image_size)
    fields: dict[str, Any] = {**vars(config.model), **special_token_ids(tokenizer)}
    del fields["image_size"]  # the processor's
    model = GRUCaptionerForConditionalGeneration.from_encoder_pretrained(fields.pop("encoder"), **fields)
    model.generation_config.update(
        num_beams=validation.num_beams,
        length_penalty=validation.length_penalty,
        max_new_tokens=validation.max_new_tokens,
        suppress_tokens=[tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id],
    )

    encoder = model.encoder.vision.to(accelerator.device)

    def regions_of(dataset, flip: bool = False):
        title = "encoding mirrored photos" if flip else "encoding photos"
        return cache_regions(
            dataset,
            encoder,
            lambda images: processor(images=images)["pixel_values"],
            processor.image_processor.to_json_string(),
            config.data.cache_folder,
            flip=flip,
            progress=lambda batches, total: tqdm(batches, title, total, unit="batch"),
        )

    with accelerator.main_process_first():
        views = [regions_of(training_set, flip) for flip in ([False, True] if config.data.flip else [False])]
        validation_regions = TensorDataset(torch.from_numpy(regions_of(validation_set)))

    references = list(validation_set["captions"])
    validation_batches = accelerator.prepare(DataLoader(validation_regions, batch_size=validation.images_per_batch))

    def validate(averaged_model) -> dict[str, float]:
        regions = (batch for (batch,) in validation_batches)
        written = write_captions(averaged_model, processor, regions, accelerator)
        return score_captions(
            written, references, metrics=("bleu", "cider"), tokenizer="simple", human=False, bootstrap=0
        ).figures

    batches = DataLoader(
        CaptionedRegions(views, captions),
        batch_size=optimization.images_per_step,
        shuffle=True,
        collate_fn=CaptionCollator(processor),
    )
    trainer = CaptionTrainer(model, processor, accelerator, optimization, config.output_dir)
    trainer.fit(batches, validate)
    accelerator.print(f"the best checkpoint is in {trainer.output_dir / 'checkpoint'}")
    accelerator.end_training()
    return 0


def _training_config(argv: Sequence[str]):
    """The resolved configuration: the YAML file of `--config`, and the command line over it."""
    from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

    from .training.config import TrainingConfig

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="gru-captioner train",
        description="Trains a captioner; knobs not given keep their defaults.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file of these knobs")
    parser.add_class_arguments(TrainingConfig)
    try:
        parsed = parser.instantiate(parser.parse_args(list(argv)))
    except ArgumentError as error:
        raise UsageError(f"{error}. The knobs: gru-captioner train --help") from error
    return TrainingConfig(**{name: value for name, value in vars(parsed).items() if name != "config"})


def entry_point() -> None:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry_point()
