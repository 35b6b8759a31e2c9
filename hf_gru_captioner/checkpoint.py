"""The one loader of checkpoints, for captioning, training, scoring and the page alike; and of pretrained encoders.

Safetensors only, files of one commit, none of a repository's code; what `checkpoint_limits` says of sizes and settings
holds before anything is built. Nothing here imports torch before it is needed: graphs caption without it.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint_limits import (
    MAX_BYTES,
    MAX_SIDE,
    check_config,
    check_encoder,
    check_files,
    check_layers,
    read_json,
)
from .errors import reason_of
from .files import CONFIG, GRAPHS_FOLDER, GRAPHS_SETTINGS, WEIGHTS, WEIGHTS_INDEX, sha256_of

if TYPE_CHECKING:
    import torch

    from .inference.graphs import GraphBackend
    from .model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor

SHIPPED_CHECKPOINT = Path(__file__).parent / "pretrained"

# What one image may take of an encoder: half as much again as DINOv2's large one takes at 518 pixels.
MAX_OPERATIONS = 1.5e12
MAX_VALUES = 50_000_000  # in one tensor
OF_THIS_MACHINE = ("is_local", "local_files_only")  # how a tokenizer was loaded, which transformers would save with it


class UnsafeWeightsError(ValueError):
    """Weights in another format than safetensors."""


@dataclass(frozen=True)
class Source:
    """Where a checkpoint is.

    Args:
        name: Folder or Hub id.
        revision, token: As in `AutoModel.from_pretrained`.
    """

    name: str
    revision: str | None = None
    token: str | bool | None = None

    def folder(self, *files: str, commit: str | None = None) -> Path:
        """Folder with such files; from the Hub they are fetched, of that commit where it is known.

        Raises:
            FileNotFoundError: No such folder or Hub repository.
            OSError: The Hub failed, timed out or closed the connection.
            ValueError: A file is too large.
        """
        if Path(self.name).is_dir():
            return Path(self.name)
        from .hub import fetch

        return fetch(self.name, files, revision=commit or self.revision, token=self.token, max_bytes=MAX_BYTES)

    @property
    def is_graphs(self) -> bool:
        """Whether it is a folder of whole graphs alone, without the checkpoint that they were made of."""
        return (Path(self.name) / GRAPHS_SETTINGS).is_file()

    def commit(self, folder: Path) -> str | None:
        """The commit of a folder that was fetched from the Hub, which is its name; None for a local one."""
        return None if Path(self.name).is_dir() else folder.name


def load_checkpoint(
    source: Source, device: "str | torch.device" = "cpu", dtype: "str | torch.dtype" = "float32"
) -> "tuple[GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor]":
    """Model and processor.

    Args:
        source: Where they are.
        device: Where the model goes.
        dtype: Its precision there, whatever that of the file.

    Raises:
        FileNotFoundError: No such folder or Hub repository.
        OSError: The Hub failed, timed out or closed the connection.
        ValueError: Not a checkpoint of a GRU captioner, or a damaged one.
    """
    import torch

    from .model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor

    name = source.name
    folder = source.folder(CONFIG)  # first, since another model may be very large
    check_config(name, folder / CONFIG)
    folder = source.folder(*MAX_BYTES, WEIGHTS, commit=source.commit(folder))
    with names_damaged(f"the checkpoint {name}"), _no_progress_bars():
        check_files(name, folder)
        processor = GRUCaptionerProcessor.from_pretrained(folder, trust_remote_code=False)
        for setting in OF_THIS_MACHINE:
            processor.tokenizer.init_kwargs.pop(setting, None)
        _check_weights(folder, processor)
        model, loading = GRUCaptionerForConditionalGeneration.from_pretrained(
            folder,
            dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    model.name_or_path = model.config.name_or_path = name  # which scores are recorded by, not a folder of the cache
    model.config._commit_hash = source.commit(folder)  # as transformers has it
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ValueError(f"the checkpoint {name} lacks {len(missing)} weights, {missing[0]} for one.")
    for weight, values in model.state_dict().items():
        # the minimum and maximum suffice: nan is both where there is one
        is_checked = values.is_floating_point() and values.numel()
        if is_checked and not all(map(math.isfinite, map(float, values.aminmax()))):
            raise ValueError(f"the checkpoint {name} has weights that are not finite, in {weight} for one.")
    return model.to(device), processor


def load_graphs(
    source: Source, backend: str, graphs: str | Path | None = None, num_threads: int | None = None
) -> "tuple[GraphBackend, str | None]":
    """The graphs of a checkpoint, and the commit that its weights are of where they are on the Hub.

    Args:
        source: A checkpoint, or a folder of whole graphs alone.
        backend: One of `GRAPH_RUNTIMES`.
        graphs: Folder of the graphs; `onnx` in the checkpoint when not given.
        num_threads: Threads of the graphs; OMP_NUM_THREADS or the number of cores when not given.

    Raises:
        FileNotFoundError: No such checkpoint; as [`NoGraphsError`], no graphs.
        MissingExtraError: The backend isn't installed.
        OSError: The Hub failed, timed out or closed the connection.
        ValueError: Not a checkpoint, or a damaged one; as [`GraphsError`], graphs that are damaged or not its own.
    """
    from .inference.graphs import GraphBackend, GraphsError

    if source.is_graphs:
        return GraphBackend(source.name, backend, num_threads), None
    folder = source.folder(CONFIG)  # first, as above
    check_config(source.name, folder / CONFIG)
    files = (*MAX_BYTES, WEIGHTS) if graphs else (*MAX_BYTES, WEIGHTS, f"{GRAPHS_FOLDER}/*")
    folder = source.folder(*files, commit=source.commit(folder))
    with names_damaged(f"the checkpoint {source.name}"):
        check_files(source.name, folder)
    graphs = Path(graphs or folder / GRAPHS_FOLDER)
    loaded = GraphBackend(graphs, backend, num_threads, folder)
    if loaded.are_whole and loaded.settings["weights"] != sha256_of(folder / WEIGHTS):
        raise GraphsError(_of_other_weights(source.name, graphs))
    return loaded, source.commit(folder)


def is_captioner(source: Source) -> bool:
    """Whether a source is a checkpoint of a GRU captioner, by its config.json.

    Raises:
        FileNotFoundError: No such folder or Hub repository.
        OSError: The Hub failed, timed out or closed the connection.
    """
    path = source.folder(CONFIG) / CONFIG
    try:
        return path.is_file() and read_json(path).get("model_type") == "gru_captioner"
    except (AttributeError, ValueError):  # what loads it says what is wrong
        return False


def encoder_folder(source: Source) -> Path:
    """Folder of a pretrained encoder's files, fetched from the Hub where `source` is on it.

    Raises:
        FileNotFoundError: No such folder or Hub repository.
        OSError: The Hub failed, timed out or closed the connection.
        ValueError: Not an encoder, weights that are not safetensors, or a damaged one.
    """
    folder = source.folder(CONFIG)
    _check_encoder_config(source.name, folder / CONFIG)
    files = (CONFIG, "preprocessor_config.json", "processor_config.json", "model*.safetensors", WEIGHTS_INDEX)
    folder = source.folder(*files, commit=source.commit(folder))
    with names_damaged(f"the encoder {source.name}", OSError, UnsafeWeightsError):
        _check_encoder_weights(folder, weights_files(f"encoder {source.name}", folder))
    return folder


def weights_files(what: str, folder: Path) -> Sequence[Path]:
    """The files of weights of a model, as transformers would choose them.

    Args:
        what: The model, for the message.
        folder: Of its files.

    Raises:
        UnsafeWeightsError: It has no safetensors.
    """
    if (whole := folder / WEIGHTS).is_file():
        return [whole]
    names = []
    if (index := folder / WEIGHTS_INDEX).is_file():
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    if not names or not all(each.endswith(".safetensors") and Path(each).name == each for each in names):
        raise UnsafeWeightsError(
            f"the {what} has no weights as safetensors, and others are not loaded: a pickle can run any code. "
            "Load it where you trust it and save it with save_pretrained(), which writes safetensors."
        )
    return [folder / each for each in names]


def check_work(model: "GRUCaptionerForConditionalGeneration", processor: "GRUCaptionerProcessor") -> None:
    """Refuses an encoder that would take too much time or memory for one image.

    Raises:
        ValueError: Says why.
    """
    _check_sides(processor.image_processor)
    if processor.image_size is not None:
        _count_work(_without_memory(model.config).encoder.vision, processor.image_size)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """transformers shows one of its weights, which takes a second here."""
    from transformers.utils import logging

    are_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if are_shown:
            logging.enable_progress_bar()


@contextmanager
def names_damaged(what: str, *let_through: type[Exception]) -> Iterator[None]:
    """Around what reads or builds a checkpoint: a damaged file raises whatever the library that reads it stumbles over.

    Raises:
        ValueError: Says what is damaged.
    """
    try:
        yield
    except let_through:
        raise
    except Exception as error:
        raise ValueError(f"{what} is damaged or its files don't fit together ({reason_of(error)}).") from error


def _check_weights(folder: Path, processor: "GRUCaptionerProcessor") -> None:
    """Refuses a model that the file of weights is not of, before memory is taken for what the file lacks; and one that
    would take too much time or memory for an image."""
    from safetensors import safe_open

    from .model import GRUCaptionerConfig

    _check_sides(processor.image_processor)
    if not (weights := folder / WEIGHTS).is_file():
        return
    model = _without_memory(GRUCaptionerConfig.from_pretrained(folder))
    wanted = model.state_dict()
    if sum(values.numel() for values in model.buffers()) > MAX_VALUES:  # some are made by rule, not from the file
        raise ValueError("its encoder keeps tables that are too large")
    with safe_open(weights, "np") as file:
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118, not a dict
    for key in wanted.keys() & found.keys():
        if found[key] != tuple(wanted[key].shape):
            raise ValueError(f"{key} is {found[key]} in the file and {tuple(wanted[key].shape)} by config.json")
    if sum(values.numel() for values in wanted.values()) > 2 * sum(map(math.prod, found.values())):
        raise ValueError("the file lacks most of its weights")
    if processor.image_size is not None:
        _count_work(model.encoder.vision, processor.image_size)


def _without_memory(config: Any) -> "GRUCaptionerForConditionalGeneration":
    """A captioner that has sizes and no memory."""
    import torch

    from .model import GRUCaptionerForConditionalGeneration

    with torch.device("meta"):
        return GRUCaptionerForConditionalGeneration(config)


def _check_sides(image_processor: Any) -> None:
    """Refuses to scale images to what no memory holds."""
    for setting in ("size", "crop_size", "pad_size"):
        sides = dict(getattr(image_processor, setting, None) or {})
        if not all(side is None or 1 <= side <= MAX_SIDE for side in sides.values()):
            raise ValueError(f"{setting} of its images is not 1 to {MAX_SIDE} pixels")


def _count_work(vision: Any, image_size: tuple[int, int]) -> None:
    """Counts what an encoder without memory would do with one image of that height and width."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    class Largest(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.values = 0

        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), settings: Any = None) -> Any:
            results = function(*arguments, **(settings or {}))
            for each in results if isinstance(results, tuple | list) else [results]:
                if isinstance(each, torch.Tensor):
                    self.values = max(self.values, each.numel())
            return results

    image = torch.empty(1, 3, *image_size, device="meta")
    with torch.no_grad(), Largest() as largest, FlopCounterMode(display=False) as counter:
        try:
            vision.eval()(image)
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):  # else an encoder that goes by the values of its image: what it did counts
                raise
    if counter.get_total_flops() > MAX_OPERATIONS or largest.values > MAX_VALUES:
        raise ValueError(
            f"an image of {image_size[0]} x {image_size[1]} pixels takes its encoder too much time or memory"
        )


def _check_encoder_config(name: str, path: Path) -> None:
    """Refuses what would be built without end, before any other file is fetched or read."""
    if not path.is_file():
        raise ValueError(f"{name} is not an encoder: it has no {CONFIG}.")
    try:
        config = read_json(path)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{name} is not an encoder: its {CONFIG} can't be read.") from error
    check_layers(f"encoder {name}", config)
    # timm's configuration says by `pretrained_cfg` where its own weights come from, which are not asked for
    check_encoder(name, config)


def _check_encoder_weights(folder: Path, weights: Sequence[Path]) -> None:
    """Refuses an encoder that its files are not of, before memory is taken for what they lack."""
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):  # which has sizes and no memory
        wanted = AutoModel.from_config(
            AutoConfig.from_pretrained(folder, trust_remote_code=False), trust_remote_code=False
        ).state_dict()
    num_found = 0
    for path in weights:
        with safe_open(path, "np") as file:
            num_found += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118, no dict
    if sum(values.numel() for values in wanted.values()) > 2 * num_found:
        raise ValueError("the files lack most of its weights")


def _of_other_weights(name: str, graphs: Path) -> str:
    if name == str(SHIPPED_CHECKPOINT):
        return (
            f"the graphs in {graphs} are not of the checkpoint of the package: name the one that they were exported "
            "from as the checkpoint too (--checkpoint FOLDER), or, to caption by graphs alone, their own folder "
            f"(--checkpoint {graphs})."
        )
    return (
        f"the graphs in {graphs} are of other weights than those of {name}: name the checkpoint that they were "
        f"exported from, or export them again (gru-captioner export {name} --output {graphs})."
    )
