"""A whole training run, from its options to its best checkpoint; the command line and Python call the same function."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, broadcast_object_list, set_seed

from ..captioner import Captioner
from ..data import decode_photos
from ..errors import needs_extra
from ..evaluation import score_captions
from ..hub import Publisher, check_name
from ..visualization import draw_attention
from .assembly import Assembly
from .config import TrainingConfig
from .curves import plot_curves
from .energy import EnergyMeter
from .estimates import estimates
from .precision import fastest_precision
from .record import TrainingRecord
from .run_folder import begun_precision, claim, hold
from .trainer import CaptionTrainer, write_captions

TIMEOUT = timedelta(days=1)  # of a process that waits for another: encoding the images may take long
CURVES = "curves.png"


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to.

    Attributes:
        checkpoint: Folder of the best checkpoint.
        history: A record an epoch: losses, scores (as fractions: CIDEr 0.6, not 60), seconds.
        selected_by: Name of the score by which an epoch is the best.
    """

    checkpoint: Path
    history: list[dict[str, float]]
    selected_by: str

    @property
    def best(self) -> dict[str, float]:
        """The record of the best epoch."""
        return max(self.history, key=lambda record: record[self.selected_by])


def train(config: TrainingConfig) -> TrainingResult:
    """Trains a captioner, or goes on with the run that `config.output_dir` holds. Runs on every process.

    The main process writes what is in `output_dir`, but for `state/`: there every process writes its part, and the
    first one of each machine the rest. The cache of features is written by all.

    Raises:
        UsageError: Options, data or output folder don't fit; says what to change.
        OSError: Something can't be read or written; what was written before is whole.
        FloatingPointError: The loss is not finite; the best checkpoint and the states stay as they are.
    """
    if config.push_to_hub:
        check_name(config.push_to_hub)
    config = _with_precision(config)
    output_dir = Path(config.output_dir)
    accelerator = _accelerator(config, None if config.tracker == "none" else config.tracker)
    energy_meter = _energy_meter(config, accelerator)
    assembly = Assembly(config, accelerator)
    _ = assembly.model  # what can't be loaded is said before anything is written
    with _held(output_dir, accelerator):
        run = claim(config, accelerator, None if config.data.streaming else assembly.training_set)
        trainer = _trainer(assembly, run, energy_meter)
        batches = assembly.batches()
        if config.tracker != "none":
            accelerator.init_trackers("hf_gru_captioner", config={"resolved": repr(asdict(config))})
        try:
            history = trainer.fit(batches, _validation(assembly, trainer))
        finally:
            if isinstance(trainer.on_best, Publisher):
                trainer.on_best.close()
        if accelerator.is_main_process:
            plot_curves(history, output_dir / CURVES)
        accelerator.end_training()
    return TrainingResult(output_dir / "checkpoint", history, trainer.select_by)


def dry_run(config: TrainingConfig) -> str:
    """What the run would cost: sizes counted, times measured. Runs on every process; writes nothing."""
    if config.push_to_hub:
        check_name(config.push_to_hub)
    config = _with_precision(config)
    return estimates(Assembly(config, _accelerator(config, None)))


def _accelerator(config: TrainingConfig, tracker: str | None) -> Accelerator:
    accelerator = Accelerator(
        mixed_precision=config.optimization.mixed_precision,
        log_with=tracker,
        project_config=ProjectConfiguration(config.output_dir, save_on_each_node=True),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    set_seed(config.optimization.seed)
    return accelerator


def _trainer(assembly: Assembly, run: str, energy_meter: EnergyMeter | None) -> CaptionTrainer:
    config, accelerator = assembly.config, assembly.accelerator
    return CaptionTrainer(
        assembly.model,
        assembly.processor,
        accelerator,
        config.optimization,
        Path(config.output_dir),
        objective=assembly.objective,
        run=run,
        record=_record(assembly),
        on_best=Publisher(config.push_to_hub, accelerator.print) if config.push_to_hub else None,
        energy_meter=energy_meter,
    )


def _validation(assembly: Assembly, trainer: CaptionTrainer):
    """What scores the averaged model after each epoch; called on every process."""
    validation, accelerator = assembly.config.validation, assembly.accelerator
    references = list(assembly.validation_set["captions"])
    rows = assembly.validation_rows

    def validate(model) -> dict[str, float]:
        written = write_captions(
            model,
            assembly.processor,
            lambda indices: assembly.collator.images([rows[index] for index in indices]),
            len(references),
            accelerator,
            validation.images_per_batch,
        )
        scores = score_captions(
            written, references, metrics=("bleu", "cider"), tokenizer="simple", human=False, bootstrap=0
        )
        if accelerator.is_main_process and validation.shown:
            epoch = len(trainer.progress.history) + 1
            folder = trainer.output_dir / "looks" / f"epoch-{epoch:02d}"
            _draw_attention(folder, model, assembly.processor, assembly.validation_set, validation.shown)
        return scores.values

    return validate


def _with_precision(config: TrainingConfig) -> TrainingConfig:
    """The same with "auto" decided: by what the run in the output folder began with, else by what is fastest here.

    The first process looks and measures, and tells the others. A run that goes on must not measure and choose anew.
    """
    if config.optimization.mixed_precision != "auto":
        return config
    state = PartialState(timeout=TIMEOUT)
    chosen = ["", ""]
    if state.is_main_process:
        begun = begun_precision(Path(config.output_dir))
        chosen = [begun, f"{begun}, as this run began"] if begun else list(fastest_precision(state.device))
    broadcast_object_list(chosen)
    state.print(f"precision       {chosen[1]}")
    precision: Any = chosen[0]
    return replace(config, optimization=replace(config.optimization, mixed_precision=precision))


@contextmanager
def _held(output_dir: Path, accelerator: Accelerator) -> Iterator[None]:
    """Keeps the output folder for this run. The main process does; all of them give up if it can't."""
    with ExitStack() as stack:
        problem: list[OSError | None] = [None]
        if accelerator.is_main_process:
            try:
                stack.enter_context(hold(output_dir))
            except OSError as error:
                problem = [error]
        broadcast_object_list(problem)
        if problem[0] is not None:
            raise problem[0]
        yield


def _energy_meter(config: TrainingConfig, accelerator: Accelerator) -> EnergyMeter | None:
    """Of the main process: what it measures is the whole machine's."""
    if not config.measure_energy or not accelerator.is_main_process:
        return None
    with needs_extra("energy"):
        return EnergyMeter()


def _record(assembly: Assembly) -> TrainingRecord:
    num_images = num_captions = None
    if not assembly.config.data.streaming:
        num_images, num_captions = len(assembly.training_set), sum(map(len, assembly.known_captions))
    return TrainingRecord(
        asdict(assembly.config),
        images=num_images,
        captions=num_captions,
        processes=assembly.accelerator.num_processes,
        parent_revision=getattr(assembly.model.config, "_commit_hash", None),
    )


def _draw_attention(folder: Path, model, processor, rows, num_images: int) -> None:
    """Draws the first images with their captions and where the model looked. Runs on one process."""
    images = decode_photos(rows, range(min(num_images, len(rows))))
    captions = Captioner(model, processor)(images)
    folder.mkdir(parents=True, exist_ok=True)
    for name, image, caption in zip(rows["image_id"], images, captions, strict=False):
        if caption.attention is not None:
            draw_attention(image, caption.words, caption.attention).save(folder / f"{Path(name).stem}.png")
    (folder / "captions.txt").write_text("".join(f"{caption.text}\n" for caption in captions))
