"""A training run, from its options to its best checkpoint; the command line and Python call the same function."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, broadcast_object_list, set_seed
from transformers.utils import logging as transformers_logging

from ..captioner import Captioner
from ..data import decode_images
from ..data.teachers import teachers_of
from ..errors import needs_extra
from ..evaluation import choose_tokenizer, score_captions
from ..files import atomic_path, distinct_names, write_atomically
from ..hub import Publisher, check_name
from ..visualization import draw_attention
from .assembly import Assembly
from .config import TrainingConfig
from .curves import best_of, last_improvement, plot_curves
from .energy import EnergyMeter
from .estimates import estimates
from .precision import fastest_precision
from .record import TrainingRecord
from .run_folder import claim, hold, initial_precision
from .trainer import CaptionTrainer, write_captions

_logger = logging.getLogger(__name__)

TIMEOUT = timedelta(days=1)  # for processes that wait for others: encoding the images may take hours
CURVES = "curves.png"


@dataclass(frozen=True)
class TrainingResult:
    """The result of a run.

    Attributes:
        checkpoint: Folder of the best checkpoint.
        history: One record per epoch: losses, scores (as fractions: CIDEr 0.6, not 60), seconds.
        selected_by: Name of the score that the best epoch is selected by; BLEU-4, then the later epoch, breaks ties.
    """

    checkpoint: Path
    history: list[dict[str, float]]
    selected_by: str

    @property
    def best(self) -> dict[str, float]:
        """The record of the best epoch."""
        return best_of(self.history, self.selected_by)

    @property
    def is_improving(self) -> bool:
        """Whether the last epoch is better than all before it, so that more epochs may help."""
        return last_improvement(self.history, self.selected_by) == len(self.history)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Hides transformers' progress bars for weights and Accelerate's warning about tied weights, then restores both."""
    accelerate_logger = logging.getLogger("accelerate.utils.other")
    level, shows_bars = accelerate_logger.level, transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    accelerate_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        accelerate_logger.setLevel(level)
        if shows_bars:
            transformers_logging.enable_progress_bar()


@_quiet_libraries()
def train(config: TrainingConfig, announce: Callable[[str], object] | None = None) -> TrainingResult:
    """Trains a captioner, or resumes the run that `config.output_dir` holds. Runs on every process.

    The main process writes to `output_dir`, except for `state/`: there every process writes its part, and the first one
    of each machine the rest. All processes write to the cache of encoder outputs.

    Args:
        config: The options; see `TrainingConfig.from_options`.
        announce: Called on the main process with the estimates, as text, before training starts.

    Raises:
        UsageError: Options, data or output folder are unusable; the message says what to change.
        OSError: Something can't be read or written; what was written before is intact.
        FloatingPointError: The loss is non-finite; the best checkpoint and the states stay as they are.
    """
    if config.push_to_hub:
        check_name(config.push_to_hub)
    config = _resolve_precision(config)
    output_dir = Path(config.output_dir)
    accelerator = _make_accelerator(config, None if config.tracker == "none" else config.tracker)
    energy_meter = _make_energy_meter(config, accelerator)
    assembly = Assembly(config, accelerator)
    _ = assembly.model, assembly.collator  # fail before anything is written
    with _locked(output_dir, accelerator):
        run = claim(config, accelerator, [] if config.data.streaming else assembly.training_sets)
        if announce is not None:
            estimate = estimates(assembly)
            if accelerator.is_main_process:
                announce(estimate)
        batches = assembly.batches()
        _ = assembly.validation_rows  # encoded before Accelerate wraps the model
        trainer = _make_trainer(assembly, run, energy_meter)
        if config.tracker != "none":
            accelerator.init_trackers("hf_gru_captioner", config={"resolved": repr(asdict(config))})
        try:
            history = trainer.fit(batches, _make_validate(assembly, trainer))
        finally:
            if isinstance(trainer.on_best, Publisher):
                trainer.on_best.close()
        if accelerator.is_main_process:
            plot_curves(history, output_dir / CURVES)
        accelerator.end_training()
    return TrainingResult(output_dir / "checkpoint", history, trainer.select_by)


@_quiet_libraries()
def dry_run(config: TrainingConfig) -> str:
    """Estimates time and disk space of the run, as text. Runs on every process; writes nothing."""
    if config.push_to_hub:
        check_name(config.push_to_hub)
    config = _resolve_precision(config)
    return estimates(Assembly(config, _make_accelerator(config, None)))


def _make_accelerator(config: TrainingConfig, tracker: str | None) -> Accelerator:
    accelerator = Accelerator(
        mixed_precision=config.optimization.mixed_precision,
        log_with=tracker,
        project_config=ProjectConfiguration(config.output_dir, save_on_each_node=True),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    set_seed(config.optimization.seed)
    return accelerator


def _make_trainer(assembly: Assembly, run: str, energy_meter: EnergyMeter | None) -> CaptionTrainer:
    config, accelerator = assembly.config, assembly.accelerator
    return CaptionTrainer(
        assembly.model,
        assembly.processor,
        accelerator,
        config.optimization,
        Path(config.output_dir),
        objective=assembly.objective,
        run=run,
        record=_make_record(assembly),
        graphs=config.save_onnx,
        on_best=Publisher(config.push_to_hub, _logger.info) if config.push_to_hub else None,
        energy_meter=energy_meter,
    )


def _make_validate(assembly: Assembly, trainer: CaptionTrainer):
    """Creates the function that scores the averaged model after each epoch, on every process."""
    shown, is_one = assembly.config.validation.shown, len(assembly.sources) == 1
    references = {name: list(rows["captions"]) for name, rows in assembly.validation_sets.items()}

    def validate(model) -> dict[str, float]:
        scores = {name: _scores(assembly, model, name, captions) for name, captions in references.items()}
        if assembly.accelerator.is_main_process and shown:
            epoch = len(trainer.progress.history) + 1
            folder = trainer.output_dir / "attention" / f"epoch-{epoch:02d}"
            for name, rows in assembly.validation_sets.items():
                source_folder = folder if is_one else folder / name.replace("/", "--")
                _draw_attention(source_folder, model, assembly.processor, rows, shown)
        return next(iter(scores.values())) if is_one else _with_means(scores)

    return validate


def _scores(assembly: Assembly, model, name: str, references: list[list[str]]) -> dict[str, float]:
    """Scores on the validation images of one source. Runs on every process."""
    rows = assembly.validation_rows[name]
    captions = write_captions(
        model,
        assembly.processor,
        lambda indices: assembly.collator.images([rows[index] for index in indices]),
        len(references),
        assembly.accelerator,
        assembly.config.validation.images_per_batch,
    )
    tokenizer = choose_tokenizer(references, java=False)
    scores = score_captions(
        captions, references, metrics=("bleu", "cider"), tokenizer=tokenizer, human=False, bootstrap=0
    )
    return scores.values


def _with_means(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """Scores by source -> means over the sources, followed by the scores of each source as `cider/NAME`."""
    metrics = next(iter(scores.values()))
    means = {metric: sum(each[metric] for each in scores.values()) / len(scores) for metric in metrics}
    return means | {f"{metric}/{name}": each[metric] for name, each in scores.items() for metric in metrics}


def _resolve_precision(config: TrainingConfig) -> TrainingConfig:
    """Resolves the precision "auto": to that of the run in the output folder, otherwise to the fastest.

    The first process reads or measures it and broadcasts the result. A resumed run must not measure again.
    """
    if config.optimization.mixed_precision != "auto":
        return config
    state = PartialState(timeout=TIMEOUT)
    chosen = ["", ""]
    if state.is_main_process:
        initial = initial_precision(Path(config.output_dir))
        chosen = [initial, f"{initial}, as before"] if initial else list(fastest_precision(state.device))
    broadcast_object_list(chosen)
    if state.is_main_process:
        _logger.info("precision       %s", chosen[1])
    precision: Any = chosen[0]
    return replace(config, optimization=replace(config.optimization, mixed_precision=precision))


@contextmanager
def _locked(output_dir: Path, accelerator: Accelerator) -> Iterator[None]:
    """Locks the output folder from the main process; if that fails, all processes do."""
    with ExitStack() as stack:
        lock_error: list[OSError | None] = [None]
        if accelerator.is_main_process:
            try:
                stack.enter_context(hold(output_dir))
            except OSError as error:
                lock_error = [error]
        broadcast_object_list(lock_error)
        if lock_error[0] is not None:
            raise lock_error[0]
        yield


def _make_energy_meter(config: TrainingConfig, accelerator: Accelerator) -> EnergyMeter | None:
    """An energy meter on the main process, since it measures the whole machine; None if not configured."""
    if not config.measure_energy or not accelerator.is_main_process:
        return None
    with needs_extra("energy"):
        return EnergyMeter()


def _make_record(assembly: Assembly) -> TrainingRecord:
    num_images = num_captions = None
    if not assembly.config.data.streaming:
        num_images, num_captions = sum(map(len, assembly.training_sets)), sum(map(len, assembly.known_captions))
    return TrainingRecord(
        asdict(assembly.config),
        images=num_images,
        captions=num_captions,
        processes=assembly.accelerator.num_processes,
        teachers=[each for source in assembly.config.data.sources for each in teachers_of(source.path)],
        parent_revision=getattr(assembly.model.config, "_commit_hash", None),
    )


def _draw_attention(folder: Path, model, processor, rows, num_images: int) -> None:
    """Draws the first images with their attention, and writes their ids and captions. Runs on one process."""
    images = decode_images(rows, range(min(num_images, len(rows))))
    captions = Captioner(model, processor)(images)
    folder.mkdir(parents=True, exist_ok=True)
    image_ids = rows["image_id"][: len(images)]
    stems = distinct_names(Path(image_id).stem for image_id in image_ids)
    for stem, image, caption in zip(stems, images, captions, strict=True):
        if caption.attention is not None:
            with atomic_path(folder / f"{stem}.png") as temporary:
                draw_attention(image, caption.words, caption.attention).save(temporary, format="PNG")
    lines = (f"{image_id}: {caption.text}\n" for image_id, caption in zip(image_ids, captions, strict=True))
    write_atomically(folder / "captions.txt", "".join(lines))
