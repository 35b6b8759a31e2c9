"""The Accelerate loop: any objective, with all captions of an image in one batch, validated by generated captions.

AdamW (https://arxiv.org/abs/1711.05101) with warm-up and cosine decay, gradient clipping, and an exponential moving
average of the weights, which is validated and saved.

A run can be killed at any time: when restarted it resumes from its newest complete state and ends, on a CPU, with
exactly the weights of an uninterrupted run. Hence all randomness is either a function of step and image (data order,
views, crops) or comes from generators whose state is saved (dropout, sampling).
"""

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device, set_seed
from tqdm.auto import tqdm

from ..files import write_atomically
from .averaging import MovingAverage
from .checkpoints import STATES, CheckpointGraphs, TrainingStates, save_whole
from .config import OptimizationConfig
from .cross_entropy import CrossEntropy
from .curves import best_of, describe, last_improvement
from .record import TrainingRecord

_logger = logging.getLogger(__name__)

DIGITS = 5  # of scores and losses in the epoch records

Batch = dict[str, Any]
Scores = dict[str, float]


class Objective(Protocol):
    """What a step minimizes; `loss` also returns the regions `(B, P, D)` of the images."""

    @property
    def metrics(self) -> dict[str, float]: ...  # of the last batch or step, for the log
    def prepare(self, model, batch: Batch, share_done: float) -> Batch: ...
    def num_items(self, batch: Batch) -> torch.Tensor: ...
    def loss(self, model, batch: Batch, num_items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...


class Batches(Protocol):
    """Batches of each step of an epoch, from any step on."""

    steps_per_epoch: int

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Progress:
    """The progress of a run: all that a state contains besides weights, optimizer and random states."""

    step: int = 0  # of the optimizer, over all epochs
    history: list[dict[str, float]] = field(default_factory=list)  # one record per epoch
    sums: dict[str, float] = field(default_factory=dict)  # of this epoch's losses and metrics over its steps
    seconds: float = 0.0  # of training in this epoch
    energy: float = 0.0  # kWh in this epoch up to the newest state
    epochs: int = 0  # configured for the run
    patient_from: int = 0  # epochs that patience doesn't count: those before the run was continued with more epochs


class CaptionTrainer:
    """Trains a captioner. The model is copied for the moving average, then wrapped by Accelerate.

    Args:
        model: A `GRUCaptionerForConditionalGeneration`; weights that don't require gradients stay frozen.
        processor: Its processor, saved with each checkpoint.
        accelerator: Devices, processes and precision.
        config: The options.
        output_dir: Folder of `checkpoint/`, the best; `state/`, to resume from; `history.jsonl`, one line per epoch.
        objective: What to minimize; by default cross-entropy with the options of `config`.
        run: Id of this run: it resumes only from its own states.
        select_by: Name of the validation score that the best epoch is selected by; see `curves.rank` for equal ones.
        record: The training record saved with each checkpoint.
        graphs: Whether graphs are saved with it.
        on_best: Called with the folder of each best checkpoint after it is saved, on one process.
        energy_meter: Returns the kWh since its last call, recorded for each epoch as `energy_kwh`.
    """

    def __init__(
        self,
        model,
        processor,
        accelerator: Accelerator,
        config: OptimizationConfig,
        output_dir: str | Path,
        *,
        objective: Objective | None = None,
        run: str = "",
        select_by: str = "cider",
        record: TrainingRecord | None = None,
        graphs: bool = False,
        on_best: Callable[[Path], None] | None = None,
        energy_meter: Callable[[], float] | None = None,
    ):
        self.model = model
        self.processor = processor
        self.accelerator = accelerator
        self.config = config
        self.output_dir = Path(output_dir)
        self.objective: Objective = objective or CrossEntropy(
            config.label_smoothing, config.scheduled_sampling, config.attention_penalty
        )
        self.states = TrainingStates(self.output_dir / STATES, run, accelerator, config.states_kept)
        self.select_by = select_by
        self.record = record
        self.graphs = CheckpointGraphs(model, processor) if graphs else None
        self.on_best = on_best
        self.energy_meter = energy_meter
        self.progress = Progress()
        self.average = MovingAverage(model, config.ema_decay, accelerator.device)
        groups = _parameter_groups(model, config)
        label_head = getattr(self.objective, "label_head", None)
        if label_head is not None:
            groups.append(
                {"params": list(label_head.parameters()), "weight_decay": 0.0, "peak_rate": config.learning_rate}
            )
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        # Unwrapped, as objectives prepare batches with it, it keeps forward in mixed precision, generate() and encoder.
        self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        self.trained = [self.wrapped]  # modules that receive gradients
        if label_head is not None:
            self.trained.append(accelerator.prepare(label_head))
            self.objective.label_head = self.trained[-1]  # type: ignore[attr-defined]

    def fit(self, batches: Batches, validate: Callable[[Any], Scores]) -> list[dict[str, float]]:
        """Trains until the last epoch or early stopping. Runs on every process.

        The first process writes checkpoint and log, the first of each machine its states.

        Args:
            batches: This process's batches, whose keys are arguments of the model's forward, besides `image_labels`.
            validate: Scores the averaged model; called on every process after each epoch.

        Returns:
            One record per epoch: loss, scores, seconds.

        Raises:
            FloatingPointError: The loss is non-finite; the best checkpoint and the states stay as they are.
            OSError: A state or checkpoint can't be written; those before it are intact.
        """
        config = self.config
        set_seed(config.seed, device_specific=True)  # dropout differs between processes
        self._resume(batches)
        progress = self.progress
        is_finished = len(progress.history) >= config.epochs or self._stops_early()

        while len(progress.history) < config.epochs and not self._stops_early():
            epoch = len(progress.history) + 1
            self._train_epoch(epoch, batches)
            start = time.perf_counter()
            # Rounded, so that epochs whose logged scores are equal count as equally good everywhere.
            scores = {name: round(value, DIGITS) for name, value in validate(self.average.model).items()}
            steps = batches.steps_per_epoch
            means = {name: total / steps for name, total in progress.sums.items()}
            record = {"epoch": epoch, **means, **scores, "train_seconds": progress.seconds}
            if self.energy_meter is not None:
                record["energy_kwh"] = progress.energy + self.energy_meter()
            progress.history.append({**record, "validation_seconds": time.perf_counter() - start})
            progress.sums, progress.seconds, progress.energy = {}, 0.0, 0.0
            if self.accelerator.is_main_process:
                self._record_epoch()
            self.accelerator.log(record, step=progress.step)
            self._save_state(batches)
        if self.accelerator.is_main_process and (is_finished or len(progress.history) < config.epochs):
            self._log_why_it_ends(is_finished)
        return progress.history

    def _log_why_it_ends(self, is_finished: bool) -> None:
        config, done = self.config, len(self.progress.history)
        if done >= config.epochs:
            message = f"nothing to do   all {done} epochs are finished"
        else:
            verb = "had stopped     after" if is_finished else "stopping        after"
            message = f"{verb} epoch {done}, no better score in {config.patience} epochs (optimization.patience)"
        _logger.info("%s; to continue, increase optimization.epochs", message)

    def _train_epoch(self, epoch: int, batches: Batches) -> None:
        progress, steps = self.progress, batches.steps_per_epoch
        num_steps = self.config.epochs * steps
        first_step = progress.step - (epoch - 1) * steps
        self.wrapped.train()
        bar = tqdm(
            total=steps,
            initial=first_step,
            desc=f"epoch {epoch}/{self.config.epochs}",
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        captions, start = 0, time.perf_counter()
        with bar:
            for step in batches.epoch(epoch, first_step):
                before = time.perf_counter()
                captions += sum(len(batch["labels"]) for batch in step) * self.accelerator.num_processes
                loss, grad_norm = self._train_step(step, num_steps)
                progress.step += 1
                for name, value in {"loss": loss, **self.objective.metrics}.items():
                    progress.sums[name] = progress.sums.get(name, 0.0) + value
                now = time.perf_counter()
                progress.seconds += now - before
                bar.update()
                rate = captions / (now - start)
                learning_rate = self.optimizer.param_groups[-1]["lr"]
                bar.set_postfix(
                    {"captions/s": f"{rate:.0f}", "loss": f"{loss:.3f}", "lr": f"{learning_rate:.1e}"}
                    | {"grad": f"{grad_norm:.2f}"}
                    | {name: f"{value:.3f}" for name, value in self.objective.metrics.items()},
                    refresh=False,
                )
                if progress.step % 10 == 0:
                    metrics = {"loss": loss, "learning_rate": learning_rate, "grad_norm": grad_norm}
                    self.accelerator.log({**metrics, **self.objective.metrics}, step=progress.step)
                if progress.step % self.config.state_steps == 0 and progress.step < epoch * steps:
                    self._save_state(batches)

    def _train_step(self, step: list[Batch], num_steps: int) -> tuple[float, float]:
        """One of `num_steps` optimizer steps -> loss per item over all processes, gradient norm before clipping.

        Each process divides its sums by the mean number of items per process. Since the gradients of the processes are
        averaged, the step equals that of one large batch, however it is split.
        """
        share_done = self.progress.step / num_steps
        rate = _share_of_peak(self.progress.step, num_steps, math.ceil(self.config.warmup_share * num_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_rate"] * rate
        step = [send_to_device(batch, self.accelerator.device) for batch in step]
        with self.accelerator.autocast():
            step = [self.objective.prepare(self._unwrapped(), batch, share_done) for batch in step]
        num_items = torch.stack([self.objective.num_items(batch) for batch in step]).sum(dim=0)
        num_items = self.accelerator.reduce(num_items, reduction="mean")
        total = torch.zeros((), device=self.accelerator.device)
        for number, batch in enumerate(step):
            is_last = number == len(step) - 1
            # Gradients are synchronized once per step.
            with ExitStack() as stack:
                for module in [] if is_last else self.trained:
                    stack.enter_context(self.accelerator.no_sync(module))
                loss, _ = self.objective.loss(self.wrapped, batch, num_items)
                self.accelerator.backward(loss)
            total += loss.detach()
        parameters = [parameter for module in self.trained for parameter in module.parameters()]
        grad_norm = self.accelerator.clip_grad_norm_(parameters, self.config.max_grad_norm or math.inf)
        step_loss = self.accelerator.reduce(total, reduction="mean").item()
        # A gradient scaler skips steps with non-finite gradients itself, to adjust its scale.
        has_scaler = self.accelerator.scaler is not None
        if not math.isfinite(step_loss) or not (has_scaler or math.isfinite(grad_norm)):
            batch_file = self._save_bad_batch(step)
            raise FloatingPointError(
                f"non-finite values in step {self.progress.step + 1}: loss {step_loss}, gradient norm {grad_norm:g}."
                " The newest state and the best checkpoint are intact; "
                f"{batch_file} has the captions of the batch. Lower the learning rate, or set "
                "optimization.mixed_precision to no."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self._unwrapped())
        return step_loss, float(grad_norm)

    def _save_bad_batch(self, step: list[Batch]) -> Path:
        """Writes the captions of this process's batches of a step to a file, grouped by image."""
        captions_of_images: list[list[str]] = []
        for batch in step:
            captions_of_image: dict[int, list[str]] = {}
            captions = self.processor.batch_decode(batch["labels"])
            for image, caption in zip(batch["image_index"].tolist(), captions, strict=True):
                captions_of_image.setdefault(image, []).append(caption)
            captions_of_images += captions_of_image.values()
        path = self.output_dir / f"bad-batch-{self.accelerator.process_index}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"step": self.progress.step + 1, "captions": captions_of_images}
        write_atomically(path, json.dumps(content, indent=1) + "\n")
        return path

    def _unwrapped(self):
        return self.accelerator.unwrap_model(self.wrapped)

    def _stops_early(self) -> bool:
        if self.config.patience is None or not self.progress.history:
            return False
        history = self.progress.history
        patient_from = max(last_improvement(history, self.select_by), self.progress.patient_from)
        return len(history) - patient_from >= self.config.patience

    def _save_state(self, batches: Batches) -> None:
        """Saves a state. Runs on every process."""
        self.progress.epochs = self.config.epochs
        if self.energy_meter is not None:
            self.progress.energy += self.energy_meter()

        def write(folder: Path) -> None:
            self.accelerator.save_state(str(folder))
            process = self.accelerator.process_index
            (folder / f"batches-{process}.json").write_text(json.dumps(batches.state_dict()))
            if self.accelerator.is_local_main_process:
                self.average.save(str(folder / "averaged.safetensors"))
                (folder / "progress.json").write_text(json.dumps(asdict(self.progress)))

        self.states.save(self.progress.step, write)

    def _resume(self, batches: Batches) -> None:
        """Loads the newest complete state, if there is one. Runs on every process."""
        newest = self.states.newest()
        if newest is None:
            return
        step, folder = newest
        if self.accelerator.is_main_process:
            num_steps = self.config.epochs * batches.steps_per_epoch
            _logger.info("resuming after step %d of %d, from %s", step, num_steps, folder)
        self.accelerator.load_state(str(folder))
        self.progress = Progress(**json.loads((folder / "progress.json").read_text()))
        if 0 < self.progress.epochs < self.config.epochs:
            self.progress.patient_from = len(self.progress.history)  # patience restarts with the added epochs
        self.average.load(str(folder / "averaged.safetensors"), steps=step)
        batches_path = folder / f"batches-{self.accelerator.process_index}.json"
        if batches_path.exists():  # otherwise there are more processes than before, and this one is new
            batches.load_state_dict(json.loads(batches_path.read_text()))

    def _record_epoch(self) -> None:
        """Writes the log and, if the model is the best so far, the checkpoint. Runs on one process."""
        history = self.progress.history
        self.output_dir.mkdir(parents=True, exist_ok=True)
        is_best = history[-1] is best_of(history, self.select_by)
        if is_best:
            precision = getattr(torch, self.config.checkpoint_precision)
            best: Any = copy.deepcopy(self.average.model).to(precision)
            parts = [best, self.processor]
            if self.record is not None:
                self.record.history = history
                parts.append(self.record)
            if self.graphs is not None:
                parts.append(self.graphs)
            with torch.random.fork_rng(devices=()):  # exporting graphs, once in a process, draws from the generator
                save_whole(self.output_dir / "checkpoint", *parts)
            if self.on_best is not None:
                self.on_best(self.output_dir / "checkpoint")
        lines = [json.dumps({name: round(value, DIGITS) for name, value in record.items()}) for record in history]
        write_atomically(self.output_dir / "history.jsonl", "\n".join(lines) + "\n")
        _logger.info("%s%s", describe(history[-1], self.config.epochs), "  best so far" if is_best else "")


def _share_of_peak(step: int, num_steps: int, warmup_steps: int) -> float:
    """Learning rate of a step as a fraction of its peak: linear warm-up, then half a cosine."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps  # a first step of 0 would teach nothing
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, num_steps - warmup_steps)))


def _parameter_groups(model, config: OptimizationConfig) -> list[dict[str, Any]]:
    """Groups the trainable parameters: the encoder has its own learning rate, vectors have no weight decay."""
    groups = []
    for is_encoder in (True, False):
        rate = config.encoder_learning_rate if is_encoder else config.learning_rate
        trainable = [
            parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and name.startswith("encoder.vision.") == is_encoder
        ]
        for is_matrix in (True, False):
            parameters = [parameter for parameter in trainable if (parameter.ndim > 1) == is_matrix]
            if parameters:
                decay = config.weight_decay if is_matrix else 0.0
                groups.append({"params": parameters, "weight_decay": decay, "peak_rate": rate})
    return groups


@torch.inference_mode()
def write_captions(
    model,
    processor,
    images: Callable[[Sequence[int]], Batch],
    num_images: int,
    accelerator: Accelerator | None = None,
    images_per_batch: int = 64,
    **generation,
) -> list[str]:
    """Generates captions of images, in order; with an accelerator, each process generates a share and gets all.

    Args:
        model, processor: A captioner.
        images: Maps indices to the inputs of generate(): `pixel_values` or `encoder_outputs`.
        num_images: Number of images.
        accelerator: The processes.
        images_per_batch: Images per batch.
        generation: Arguments of generate().
    """
    process, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    share = range(process, num_images, processes)
    captions_by_index: list[tuple[int, str]] = []
    for start in range(0, len(share), images_per_batch):
        indices = share[start : start + images_per_batch]
        batch = send_to_device(images(indices), model.device)
        captions_by_index += zip(indices, processor.batch_decode(model.generate(**batch, **generation)), strict=True)
    return [caption for _, caption in sorted(gather_object(captions_by_index) if accelerator else captions_by_index)]
