"""Scores a checkpoint, or result files of other systems, on images with reference captions: `gru-captioner score`.

    references = load_references("my/captions.csv")
    run = score(references, caption_references(references, "runs/mine/checkpoint"))
    print(run.scores.table())
    run.save("runs/score")

`save` writes into a folder
    predictions.json    captions of the checkpoint, in COCO's results format
    metrics.json        scores, intervals, and all settings that must match for scores to be comparable
    report.html         the same as a web page, with images
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import MissingExtraError, UsageError, needs_extra
from .files import distinct_names, write_atomically
from .inference.backend import AUTO
from .label_names import LabelNames

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image

    from .captioner import Caption
    from .evaluation import LabelMentions, SystemScores

SIGNED = ("num_beams", "length_penalty", "no_repeat_ngram_size")  # settings of generate() that change scores
LIBRARIES = ("torch", "transformers", "datasets", "evaluate", "pycocoevalcap")
DEFAULT_METRICS = ("cider", "meteor", "bleu", "rouge_l", "diversity")
SHIPPED = "shipped checkpoint"  # name of the package's own checkpoint in tables
PREDICTIONS = "predictions.json"


@dataclass(frozen=True)
class References:
    """Images with reference captions.

    Attributes:
        captions: Reference captions by image id. If several images have the same one, it is numbered (`a`, `a.2`).
        settings: Where they come from.
        rows: Rows of the dataset with the images, in the same order; None for a file of captions only.
        numbered: The first image id that was numbered; None if each image has its own.
    """

    captions: Mapping[str, list[str]]
    settings: Mapping[str, Any]
    rows: Dataset | None = None
    numbered: str | None = None

    def image(self, index: int) -> Image.Image:
        """The decoded image of a row."""
        from .data import decode_images

        return decode_images(self.rows, [index])[0]


@dataclass(frozen=True)
class CheckpointCaptions:
    """Captions of a checkpoint.

    Attributes:
        name: Name of the system in tables.
        captions: One per image, in the order of the references.
        folder: Folder or Hub id of the checkpoint.
        settings: Checkpoint, hash of its weights, generation settings, backend.
    """

    name: str
    captions: Sequence[Caption]
    folder: str
    settings: Mapping[str, Any]

    @property
    def decoding(self) -> str:
        """Generation settings that change scores, as in `num_beams:5|length_penalty:0.8`."""
        generation = self.settings["generation"]
        return "|".join(f"{key}:{generation[key]}" for key in SIGNED if key in generation)

    def save(self, folder: str | Path, references: References) -> Path:
        """Write `predictions.json` into a folder, atomically, and return its path. Runs on one process."""
        from .evaluation.coco import write_results

        path = Path(folder) / PREDICTIONS
        path.parent.mkdir(parents=True, exist_ok=True)
        write_results(path, list(references.captions), [caption.text for caption in self.captions])
        return path


def load_references(data: str, split: str = "validation", **options: Any) -> References:
    """Load a split of a dataset: Hub id, folder or file.

    Args:
        data, split: As in `data.load_captions`.
        options: `images`, `image_column`, `caption_column`, `allow_urls` and others of `data.load_captions`.

    Raises:
        FileNotFoundError, ValueError: As in `load_captions`.
    """
    with needs_extra("score"):
        from .data import load_captions

    rows = load_captions(data, split, **options)
    image_ids, numbered = list(rows["image_id"]), None
    if len(set(image_ids)) < len(image_ids):
        distinct = distinct_names(image_ids)
        numbered = next(name for name, image_id in zip(distinct, image_ids, strict=True) if name != image_id)
        image_ids = distinct
    captions = dict(zip(image_ids, rows["captions"], strict=True))
    return References(captions, {"data": data, "split": split}, rows, numbered)


def read_references(path: str | Path, image_column: str | None = None, caption_column: str | None = None) -> References:
    """Read reference captions from a file, without images: COCO's annotations, or any table that training reads.

    In a table, images are identified by the column `image_id` if present, otherwise by their paths.

    Raises:
        FileNotFoundError, ValueError: As in `evaluation.coco.read_coco_annotations` and `data.caption_files`.
    """
    captions = _captions_in_file(Path(path), image_column, caption_column, "annotations")
    return References(captions, {"references": str(path)})


def read_results(path: str | Path) -> dict[str, str]:
    """Read a system's captions by image id from COCO's results format, or from any table that training reads.

    Raises:
        FileNotFoundError, ValueError: As in [`read_references`], or an image has more than one caption.
    """
    captions = _captions_in_file(Path(path), None, None, "results")
    several = next((image_id for image_id, texts in captions.items() if len(texts) > 1), None)
    if several is not None:
        raise UsageError(f"{path} has more than one caption of image {several[:80]}. Keep one caption per image.")
    return {image_id: texts[0] for image_id, texts in captions.items()}


def _captions_in_file(
    path: Path, image_column: str | None, caption_column: str | None, coco_format: str
) -> dict[str, list[str]]:
    with needs_extra("score"):
        from .evaluation import coco

    if path.suffix.lower() == ".json" and image_column is caption_column is None:
        if coco_format == "annotations" and coco.has_annotations(path):
            return coco.read_coco_annotations(path)
        if coco_format == "results" and not coco.has_annotations(path):
            return {image_id: [caption] for image_id, caption in coco.read_coco_results(path).items()}

    from .data.caption_files import read_caption_file
    from .data.tables import ChosenColumns

    try:
        entries = read_caption_file(path, ChosenColumns(image_column, caption_column))
    except ValueError as error:
        if image_column is not None or "no image path" not in str(error):
            raise
        entries = read_caption_file(path, ChosenColumns("image_id", caption_column))  # without images, ids suffice
    captions: dict[str, list[str]] = {}
    for entry in entries:
        captions.setdefault(entry.image_id, []).extend(entry.captions)
    without = [image_id for image_id, texts in captions.items() if not texts]
    if without:
        raise UsageError(f"{path} has no caption for {len(without):,} images; the first is {without[0][:80]}.")
    return captions


def caption_references(
    references: References,
    checkpoint: str | None = None,
    *,
    backend: str = AUTO,
    graphs: str | None = None,
    num_beams: int | None = None,
    batch_size: int = 32,
) -> CheckpointCaptions:
    """Caption the images with a checkpoint. Runs on every process: each captions a shard, all get all captions.

    Args:
        references: With rows.
        checkpoint: Folder or Hub id; by default the package's own.
        backend, graphs: As in `Captioner.from_pretrained`.
        num_beams: Number of beams; by default the checkpoint's.
        batch_size: Images per batch.

    Raises:
        MissingExtraError: The backend is not installed.
        FileNotFoundError, OSError, ValueError: As in `Captioner.from_pretrained`.
    """
    with needs_extra("score"):
        from accelerate import PartialState
        from accelerate.utils import gather_object
        from tqdm import tqdm

    from .captioner import Captioner
    from .data import decode_images

    state = PartialState()
    captioner = Captioner.from_pretrained(checkpoint, device=state.device, backend=backend, graphs=graphs)
    generation: dict[str, Any] = {} if num_beams is None else {"num_beams": num_beams}
    settings = {
        "checkpoint": captioner.name,
        "checkpoint_sha256": captioner.weights_sha256,
        "generation": {**captioner.defaults(), **generation},
        "backend": captioner.backend_for(**generation),
    }
    captions: list[Caption] = []
    with state.split_between_processes(list(range(len(references.captions)))) as shard:
        starts = range(0, len(shard), batch_size)
        for start in tqdm(starts, "captioning", unit="batch", disable=not state.is_main_process):
            images = decode_images(references.rows, shard[start : start + batch_size])
            captions.extend(captioner(images, batch_size=batch_size, **generation))
    return CheckpointCaptions(system_name(checkpoint), gather_object(captions), captioner.name, settings)


def system_name(checkpoint: str | None) -> str:
    """A checkpoint's name in tables."""
    return Path(checkpoint).name if checkpoint else SHIPPED


@dataclass(frozen=True)
class ScoringRun:
    """The scores of a checkpoint, of other systems, or of both, with all that the output files need.

    Attributes:
        references: What was scored against.
        checkpoint: The checkpoint's captions; it is the first system. None if only result files were scored.
        predictions: Captions by name of the system, one per image.
        scores: The scores of each system, and comparisons of the others with the first.
        mentions: Labels mentioned by the first system; None if the references have none.
    """

    references: References
    checkpoint: CheckpointCaptions | None
    predictions: Mapping[str, Sequence[str]]
    scores: SystemScores
    mentions: LabelMentions | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that must match for scores to be comparable, as recorded in `metrics.json`."""
        versions = {"hf_gru_captioner": __version__, "python": platform.python_version()}
        versions |= {name: version(name) for name in LIBRARIES}
        checkpoint = self.checkpoint.settings if self.checkpoint else {}
        return {**self.references.settings, **checkpoint, "versions": versions}

    def save(self, folder: str | Path) -> list[Path]:
        """Write the files into a folder, each atomically, and return their paths. Runs on one process."""
        from .evaluation.report import write_report

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        image_ids, settings = list(self.references.captions), self.settings
        written = [self.checkpoint.save(folder, self.references)] if self.checkpoint else []
        content = {**settings, "systems": self.scores.as_json()}
        if self.mentions is not None:
            content["labels"] = asdict(self.mentions)
        written.append(folder / "metrics.json")
        write_atomically(written[-1], json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        if self.references.rows is not None:
            written.append(folder / "report.html")
            write_report(
                written[-1],
                self.scores.scores,
                predictions=self.predictions,
                images=self.references.image,
                references=list(self.references.captions.values()),
                image_ids=image_ids,
                settings=settings,
                attention=self._draw_attention if self.checkpoint else None,
            )
        return written

    def _draw_attention(self, index: int) -> Image.Image | None:
        from .visualization import draw_attention

        caption = self._scored_checkpoint.captions[index]
        if caption.attention is None:
            return None
        return draw_attention(self.references.image(index), caption.words, caption.attention)

    def write_model_index(self, card: str | Path) -> None:
        """Write the checkpoint's scores into a model card's metadata. Runs on one process.

        Raises:
            UsageError: No checkpoint was scored.
            FileNotFoundError: No such card.
        """
        from .hub import eval_results, write_model_index

        name = self._scored_checkpoint.name
        own, source = self.scores.scores[name], self.references.settings
        results = eval_results(own.values, dataset=source["data"], split=source["split"], signature=own.signature)
        write_model_index(card, name, results)

    def keep(self) -> Path:
        """Stores the checkpoint's scores in its folder, for its model card; returns the file. Runs on one process.

        Raises:
            UsageError: No checkpoint was scored, or it is not a folder.
        """
        from .evaluation import by_length, by_word
        from .hub import keep_scores, public_name

        checkpoint = self._scored_checkpoint
        if not Path(checkpoint.folder).is_dir():
            raise UsageError(f"scores are stored in the checkpoint's folder, but {checkpoint.folder} is not a folder.")
        own, source = self.scores.scores[checkpoint.name], self.references.settings
        kept = {
            "data": Path(public_name(source["data"])).name,
            "split": source["split"],
            "images": len(self.references.captions),
            "settings": own.settings,
            "decoding": own.decoding,
            "signature": own.signature,
            "values": own.values,
            "intervals": own.intervals,
            "human": own.human,
            "by_word": [asdict(record) for record in by_word(own.captions)],
        }
        if "cider" in own.per_image:
            kept["by_length"] = [asdict(record) for record in by_length(own.captions, own.per_image["cider"])]
        if self.mentions is not None:
            kept["labels"] = asdict(self.mentions)
        return keep_scores(checkpoint.folder, kept)

    @property
    def _scored_checkpoint(self) -> CheckpointCaptions:
        if self.checkpoint is None:
            raise UsageError("no checkpoint was scored: pass its captions to score().")
        return self.checkpoint


@dataclass(frozen=True)
class ScoringPlan:
    """All that scoring needs besides a checkpoint's captions, which take long to generate: read and checked.

    Attributes:
        references: What to score against.
        results: Captions of other systems by name, one per image.
        training_captions: Determine which captions are novel; None if unknown.
        synonyms: Synonyms of the references' labels.
        options: Of `evaluation.score_captions`.
    """

    references: References
    results: Mapping[str, Sequence[str]]
    training_captions: Sequence[str] | None
    synonyms: Mapping[str | None, Sequence[str]] | None
    options: Mapping[str, Any]

    def score(self, checkpoint: CheckpointCaptions | None = None) -> ScoringRun:
        """Score a checkpoint's captions, if given, and the result files. Runs on one process.

        Raises:
            UsageError: Nothing to score, or two systems with the same name.
            ValueError, OSError: As in `evaluation.score_captions`.
        """
        from .evaluation import score_systems

        _check_names([*([checkpoint.name] if checkpoint else []), *self.results])
        predictions: dict[str, Sequence[str]] = {}
        if checkpoint:
            predictions[checkpoint.name] = [caption.text for caption in checkpoint.captions]
        predictions |= self.results
        if not predictions:
            raise UsageError("there is nothing to score: pass the captions of a checkpoint or result files.")
        scores = score_systems(
            predictions,
            list(self.references.captions.values()),
            decoding={checkpoint.name: checkpoint.decoding} if checkpoint else None,
            training_captions=self.training_captions,
            **self.options,
        )
        mentions = _mentions(self.references, next(iter(predictions.values())), self.synonyms)
        return ScoringRun(self.references, checkpoint, predictions, scores, mentions)


def plan_scoring(
    references: References,
    *,
    checkpoint_name: str | None = None,
    results: Sequence[str | Path] = (),
    training_data: str | None = None,
    allow_urls: bool = False,
    metrics: Sequence[str] = DEFAULT_METRICS,
    synonyms: Mapping[str | None, Sequence[str]] | None = None,
    **options: Any,
) -> ScoringPlan:
    """Read and check all that scoring needs, before a checkpoint captions the images.

    Args:
        references: What to score against.
        checkpoint_name: Name of the checkpoint that will be scored, see [`system_name`].
        results: Files in COCO's results format; a system is called by its file's name.
        training_data: Hub id or folder whose train split determines which captions are novel.
        allow_urls: Download images of `training_data` that are given as URLs.
        metrics: Names from `evaluation.METRICS`.
        synonyms: Synonyms of the references' labels, see `label_names.read_synonyms`. Label mentions are counted if
            the references have a column `labels`.
        options: `tokenizer`, `brevity_penalty`, `bootstrap` and others of `evaluation.score_captions`.

    Raises:
        UsageError: Two systems with the same name.
        MissingExtraError: Java or a package is missing.
        FileNotFoundError, ValueError, OSError: As in `evaluation.score_captions` and `evaluation.coco.match`.
    """
    with needs_extra("score"):
        from .data import load_captions
        from .evaluation import check_scoring
        from .evaluation.coco import match

    names = [Path(path).stem for path in results]
    _check_names([*filter(None, [checkpoint_name]), *names])
    try:
        check_scoring(list(references.captions.values()), metrics, options.get("tokenizer", "auto"))
    except ImportError as error:
        raise MissingExtraError(str(error)) from error
    try:
        read = {
            name: match(read_results(path), references.captions)[1] for name, path in zip(names, results, strict=True)
        }
    except ValueError as error:
        if references.numbered is None:
            raise
        raise UsageError(
            f"{error} Several images of {references.settings['data']} have the same image_id: in results, as in "
            f"{PREDICTIONS}, they are numbered, the first of them as {references.numbered[:80]!r}."
        ) from error
    known = None
    if training_data:
        training_set = load_captions(training_data, "train", allow_urls=allow_urls)
        known = [caption for captions in training_set["captions"] for caption in captions]
    return ScoringPlan(references, read, known, synonyms, {"metrics": metrics, **options})


def score(references: References, checkpoint: CheckpointCaptions | None = None, **options: Any) -> ScoringRun:
    """Score a checkpoint's captions, or result files of other systems, or both. Runs on one process.

    Args:
        references: What to score against.
        checkpoint: From [`caption_references`].
        options: `results`, `metrics` and others of [`plan_scoring`].

    Raises:
        UsageError, MissingExtraError, FileNotFoundError, ValueError, OSError: As in [`plan_scoring`] and
            [`ScoringPlan.score`].
    """
    return plan_scoring(references, **options).score(checkpoint)


def _check_names(names: Sequence[str]) -> None:
    """Raise a `UsageError` for two systems with the same name."""
    several = next((name for name in names if names.count(name) > 1), None)
    if several is not None:
        raise UsageError(f"two systems are called {several}: rename a file.")


def _mentions(
    references: References, captions: Sequence[str], synonyms: Mapping[str | None, Sequence[str]] | None
) -> LabelMentions | None:
    from .data.sources import LABELS
    from .evaluation import label_mentions

    if references.rows is None or LABELS not in references.rows.column_names:
        return None
    labels = references.rows[LABELS][:]
    names = LabelNames((label for image_labels in labels for label in image_labels or ()), synonyms)
    return label_mentions(captions, labels, list(references.captions.values()), names)
