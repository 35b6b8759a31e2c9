"""`gru-captioner train`: a data set in, a checkpoint out. Its arguments are the fields of `TrainingConfig`."""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from .shell import UsageError, needs_extra, quiet_transformers

TIMEOUT = timedelta(days=1)  # of a process that waits for another: encoding the photos may take long


def run(argv: Sequence[str]) -> int:
    """`gru-captioner train`, and `accelerate launch scripts/train.py`. Runs on every process.

    The main process writes what is in `output_dir`, but for `state/`: there every process writes its part, and the
    first one of each machine the rest. The cache of features is written by all.
    """
    with needs_extra("train"):
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed

        from ..data import CaptionCollator
        from .assembly import Assembly, read_config

        config, resolved = read_config(argv, "train", "Trains a captioner; knobs not given keep their defaults.")

    quiet_transformers()
    if config.push_to_hub:
        from ..hub import check_name

        check_name(config.push_to_hub)
    output_dir = Path(config.output_dir)
    precision = _precision(config)
    resolved = _with_precision(resolved, precision)
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=None if config.tracker == "none" or config.dry_run else config.tracker,
        project_config=ProjectConfiguration(str(output_dir), save_on_each_node=True),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    set_seed(config.optimization.seed)
    energy_meter = _energy_meter(config, accelerator)
    assembly = Assembly(config, accelerator)
    if config.dry_run:
        estimates = _estimates(assembly, CaptionCollator(assembly.processor))
        if accelerator.is_main_process:
            print(estimates)
        return 0
    _ = assembly.model  # what can't be loaded is said before anything is written
    with _held(output_dir, accelerator):
        return _fit(assembly, resolved, energy_meter)


def _fit(assembly, resolved: str, energy_meter) -> int:
    """The run itself, in a folder that no other run works in."""
    from ..data import CaptionCollator
    from ..evaluation import score_captions
    from ..training import CaptionTrainer, write_captions
    from ..training.curves import plot_curves, summary
    from .push import Publisher

    config, accelerator = assembly.config, assembly.accelerator
    output_dir, validation = Path(config.output_dir), config.validation
    model, processor, collator = assembly.model, assembly.processor, CaptionCollator(assembly.processor)
    run_name = _claim(output_dir, resolved, assembly)
    batches, validation_rows = _batches(assembly, collator), _validation_rows(assembly)
    references = list(assembly.validation_set["captions"])
    objective = _objective(assembly)
    publisher = Publisher(config.push_to_hub, accelerator.print) if config.push_to_hub else None
    trainer = CaptionTrainer(
        model,
        processor,
        accelerator,
        config.optimization,
        output_dir,
        objective=objective,
        run=run_name,
        record=_training_record(assembly, resolved),
        on_best=publisher,
        energy_meter=energy_meter,
    )

    def validate(averaged_model) -> dict[str, float]:
        written = write_captions(
            averaged_model,
            processor,
            lambda places: collator.images([validation_rows[place] for place in places]),
            len(references),
            accelerator,
            validation.images_per_batch,
        )
        scores = score_captions(
            written, references, metrics=("bleu", "cider"), tokenizer="simple", human=False, bootstrap=0
        )
        if accelerator.is_main_process and validation.shown:
            folder = output_dir / "looks" / f"epoch-{len(trainer.progress.history) + 1:02d}"
            _draw_looks(folder, averaged_model, processor, assembly.validation_set, validation.shown)
        return scores.figures

    if config.tracker != "none":
        accelerator.init_trackers("hf_gru_captioner", config={"resolved": resolved})
    try:
        history = trainer.fit(batches, validate)
    finally:
        if publisher is not None:
            publisher.close()
    if accelerator.is_main_process:
        plot_curves(history, output_dir / "curves.png")
        print(summary(history, trainer.select_by))
        print(f"the best checkpoint is in {output_dir / 'checkpoint'}, the curves in {output_dir / 'curves.png'}")
    accelerator.end_training()
    return 0


def _precision(config) -> str:
    """That of the configuration; for "auto" that which the run in the output folder began with, else the fastest.

    The first process looks and measures, and tells the others.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from ..training import fastest_precision

    if config.optimization.mixed_precision != "auto":
        return config.optimization.mixed_precision
    state = PartialState(timeout=TIMEOUT)
    chosen = ["", ""]
    if state.is_main_process:
        begun = _begun_precision(Path(config.output_dir))
        chosen = [begun, f"{begun}, as this run began"] if begun else list(fastest_precision(state.device))
    broadcast_object_list(chosen)
    state.print(f"precision       {chosen[1]}")
    return chosen[0]


def _begun_precision(output_dir: Path) -> str | None:
    """The precision of the run in the output folder, by its config.yaml; None where there is none."""
    import yaml

    try:
        precision = yaml.safe_load((output_dir / "config.yaml").read_text())["optimization"]["mixed_precision"]
    except (OSError, ValueError, yaml.YAMLError, RecursionError, LookupError, TypeError):
        return None  # a damaged file is refused when the folder is claimed
    return precision if precision in ("no", "bf16", "fp16") else None


def _with_precision(resolved: str, precision: str) -> str:
    """The configuration with what "auto" chose: a run that goes on must not measure again and choose otherwise."""
    import yaml

    options = yaml.safe_load(resolved)
    options["optimization"]["mixed_precision"] = precision
    return yaml.safe_dump(options, sort_keys=False)


@contextmanager
def _held(output_dir: Path, accelerator) -> Iterator[None]:
    """Keeps the output folder for this run. The main process does; all of them give up if it can't."""
    from accelerate.utils import broadcast_object_list

    from ..training.lock import hold

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


def _energy_meter(config, accelerator):
    """Of the main process: what it measures is the whole machine's."""
    if not config.measure_energy or config.dry_run or not accelerator.is_main_process:
        return None
    from ..training import EnergyMeter

    with needs_extra("energy"):
        return EnergyMeter()


def _batches(assembly, collator):
    """This process's batches of photos to learn from."""
    from ..data import CaptionedImages, CaptionedRegions, EpochBatches, StreamedBatches

    data, optimization, accelerator = assembly.config.data, assembly.config.optimization, assembly.accelerator
    process, processes = accelerator.process_index, accelerator.num_processes
    settings: dict[str, Any] = {"micro_batches": optimization.micro_batches, "seed": optimization.seed}
    if data.streaming:
        parts = processes * optimization.micro_batches
        if optimization.images_per_step % parts:
            raise UsageError(f"with streaming, optimization.images_per_step must be a multiple of {parts}.")
        stream = assembly.stream(data.train_split, rank=process, world_size=processes, seed=optimization.seed)
        images = optimization.images_per_step // parts
        return StreamedBatches(
            stream, collator, images, data.steps_per_epoch, block_size=data.shuffle_block, **settings
        )
    rows: CaptionedRegions | CaptionedImages
    if assembly.config.caches_regions:
        views = [assembly.regions(assembly.training_set, view) for view in assembly.views]
        rows = CaptionedRegions(views, list(assembly.training_set["captions"]), optimization.seed)
    else:
        rows = CaptionedImages(assembly.training_set, color_jitter=data.color_jitter, seed=optimization.seed)
    settings |= {"process": process, "processes": processes, "num_workers": data.num_workers}
    return EpochBatches(rows, collator, optimization.images_per_step, **settings)


def _validation_rows(assembly):
    from ..data import CaptionedImages, CaptionedRegions, View

    if not assembly.config.caches_regions:
        return CaptionedImages(assembly.validation_set, augment=False)
    captions = list(assembly.validation_set["captions"])
    return CaptionedRegions([assembly.regions(assembly.validation_set, View())], captions)


def _objective(assembly):
    """None for the trainer's own, cross-entropy with the options of the optimization."""
    from ..training import SelfCritical, count_ngrams

    if assembly.config.objective == "cross_entropy":
        return None
    labels = (assembly.processor.tokenizer(captions)["input_ids"] for captions in assembly.known_captions)
    return SelfCritical(count_ngrams(labels), **vars(assembly.config.self_critical))


def _claim(output_dir: Path, resolved: str, assembly) -> str:
    """Saves the resolved configuration with the run; refuses a folder that holds a run with other knobs.

    Returns what tells this run from others: a digest of the knobs that matter and, where they are stored, of the data.
    Runs on every process; the first one writes.
    """
    import yaml

    from ..training.config import PLACES, flatten_knobs

    def read(text: str) -> dict[str, Any]:
        return {name: value for name, value in flatten_knobs(yaml.safe_load(text)).items() if name not in PLACES}

    knobs = read(resolved)
    path = output_dir / "config.yaml"
    if path.exists():
        try:
            before = read(path.read_text())
        except (yaml.YAMLError, AttributeError, RecursionError) as error:  # no YAML, or no knobs
            raise UsageError(f"{path} holds no knobs of a run: name another output_dir.") from error
        changed = [
            f"{name} was {before.get(name)}, is {knobs.get(name)}"
            for name in sorted(before.keys() | knobs.keys())
            if before.get(name) != knobs.get(name)
        ]
        if changed:
            raise UsageError(
                f"{output_dir} holds a run with other knobs ({'; '.join(changed[:5])}): name another output_dir, or "
                "remove that one."
            )
    elif (output_dir / "checkpoint").exists():
        raise UsageError(f"{output_dir} has a checkpoint of something else: name another output_dir.")
    assembly.accelerator.wait_for_everyone()
    if assembly.accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial")
        aside.write_text(resolved)
        aside.replace(path)
    digest = hashlib.sha256(repr(knobs).encode())
    if not assembly.config.data.streaming:
        digest.update(repr([assembly.training_set["image_digest"][:], assembly.training_set["captions"][:]]).encode())
    return digest.hexdigest()


def _training_record(assembly, resolved: str):
    import yaml

    from ..training import TrainingRecord

    photos = captions = None
    if not assembly.config.data.streaming:
        photos, captions = len(assembly.training_set), sum(map(len, assembly.known_captions))
    processes = assembly.accelerator.num_processes
    return TrainingRecord(
        yaml.safe_load(resolved),
        photos=photos,
        captions=captions,
        processes=processes,
        parent_revision=getattr(assembly.model.config, "_commit_hash", None),
    )


def _draw_looks(folder: Path, model, processor, rows, num_photos: int) -> None:
    """Draws the first photos with their captions and where the model looked. Runs on one process."""
    from ..captioning import Captioner
    from ..data import decode_photos
    from ..visualization import draw_attention

    images = decode_photos(rows, range(min(num_photos, len(rows))))
    captions = Captioner(model, processor)(images)
    folder.mkdir(parents=True, exist_ok=True)
    for name, image, caption in zip(rows["image_id"], images, captions, strict=False):
        if caption.attention is not None:
            draw_attention(image, caption.words, caption.attention).save(folder / f"{Path(name).stem}.png")
    (folder / "captions.txt").write_text("".join(f"{caption.text}\n" for caption in captions))


def _estimates(assembly, collator) -> str:
    """What the run would cost: sizes counted, times measured on one encoding and two steps, here and now."""
    import torch
    from PIL import Image

    config, model = assembly.config, assembly.model
    optimization = config.optimization
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    photo = Image.new("RGB", (224, 224), "grey")
    pixel_values = assembly.processor(images=[photo] * 8)["pixel_values"].to(model.device)
    with torch.inference_mode():
        model.encoder.vision(pixel_values)
        start = time.perf_counter()
        model.encoder.vision(pixel_values)
        encoding = (time.perf_counter() - start) / len(pixel_values)  # seconds a photo

    captions = assembly.known_captions[: optimization.images_per_step]
    rows = [{"captions": each, "image": photo} for each in captions]
    if config.caches_regions:
        regions = torch.zeros(assembly.cache.region_shape)
        rows = [{"captions": each, "regions": regions} for each in captions]
    batch = collator(rows)
    model.train()
    for _ in range(2):  # the second is timed
        start = time.perf_counter()
        with assembly.accelerator.autocast():
            loss = model(**batch, skip_logits=True).loss
        loss.backward()
        step = time.perf_counter() - start
    model.zero_grad()
    model.eval()

    num_photos = None if config.data.streaming else len(assembly.training_set)
    steps = config.data.steps_per_epoch if num_photos is None else -(-num_photos // optimization.images_per_step)
    lines = [
        f"model           {parameters / 1e6:.2f} M parameters, {trainable / 1e6:.2f} M of them learn",
        f"vocabulary      {model.config.vocab_size} tokens",
        f"photos          {num_photos or 'a stream'} to learn from, {len(assembly.validation_set)} to choose by",
        f"steps           {optimization.epochs} epochs of {steps} = {optimization.epochs * steps}",
    ]
    if config.caches_regions:
        missing = sum(assembly.cache.missing_bytes(*each) for each in assembly.to_encode)
        one = 2 * torch.tensor(assembly.cache.region_shape).prod().item()
        lines.append(
            f"features        {missing / 1e9:.2f} GB to be written, about {missing / one * encoding / 60:.0f} minutes"
        )
    machine = f"{assembly.accelerator.num_processes} processes, {torch.get_num_threads()} threads"
    minutes = optimization.epochs * steps * step / 60
    states = optimization.states_kept * 4 * (parameters + 3 * trainable)  # float32; the optimizer and the average
    checkpoint = parameters * getattr(torch, optimization.checkpoint_precision).itemsize
    lines += [
        f"training        about {minutes:.0f} minutes, {step:.2f} s a step ({machine})",
        f"disk            {states / 1e6:.0f} MB of states, {checkpoint / 1e6:.0f} MB of checkpoint, in "
        + os.path.abspath(config.output_dir),
    ]
    return "\n".join(lines)
