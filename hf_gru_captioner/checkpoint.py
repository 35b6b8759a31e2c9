"""Loads checkpoints, for captioning, training, scoring and the web page alike, and pretrained encoders.

Safetensors only, all files from a single commit, no code from the repository; sizes and settings are checked by
`checkpoint_limits` before anything is built. torch is imported only when needed: graphs run without it.
"""

import json
import math
import threading
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

AUTO = "auto"  # the dtype of the weights file
DTYPES = (AUTO, "float32", "float16", "bfloat16", "float64")
SHIPPED_CHECKPOINT = Path(__file__).parent / "pretrained"

# Limits on encoding one image: 1.5 times what DINOv2 large needs at 518 pixels.
MAX_OPERATIONS = 1.5e12
MAX_VALUES = 50_000_000  # in one tensor
# While transformers loads a model, it replaces methods of PreTrainedModel: two loads at once would leave them replaced,
# and every later load would fail.
_TRANSFORMERS_LOADS = threading.Lock()
LOCAL_SETTINGS = ("is_local", "local_files_only")  # how a tokenizer was loaded; transformers would save them with it


class UnsafeWeightsError(ValueError):
    """Weights in a format other than safetensors."""


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
        """A folder with these files, downloaded if on the Hub, from that commit if given.

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
        """Whether it is a folder of whole graphs, without a checkpoint."""
        return (Path(self.name) / GRAPHS_SETTINGS).is_file()

    def commit(self, folder: Path) -> str | None:
        """The commit of a folder downloaded from the Hub, which is the folder's name; None for a local one."""
        return None if Path(self.name).is_dir() else folder.name


def load_checkpoint(
    source: Source, device: "str | torch.device" = "cpu", dtype: "str | torch.dtype" = "float32"
) -> "tuple[GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor]":
    """Model and processor.

    Args:
        source: Where the checkpoint is.
        device: The model's device.
        dtype: Its dtype, whatever the file's, or its name; `"auto"` for the file's.

    Raises:
        FileNotFoundError: No such folder or Hub repository.
        OSError: The Hub failed, timed out or closed the connection.
        ValueError: Not a checkpoint of a GRU captioner, or a damaged one; no such dtype.
    """
    dtype = _dtype(dtype)
    from .model import GRUCaptionerForConditionalGeneration, GRUCaptionerProcessor  # after torch, if that is missing

    name = source.name
    folder = source.folder(CONFIG)  # first, since some other model may be very large
    check_config(name, folder / CONFIG)
    folder = source.folder(*MAX_BYTES, WEIGHTS, commit=source.commit(folder))
    with names_damaged(f"the checkpoint {name}"), _no_progress_bars():
        check_files(name, folder)
        processor = GRUCaptionerProcessor.from_pretrained(folder, trust_remote_code=False)
        for setting in LOCAL_SETTINGS:
            processor.tokenizer.init_kwargs.pop(setting, None)
        _check_weights(folder, processor)
        with _TRANSFORMERS_LOADS:
            model, loading = GRUCaptionerForConditionalGeneration.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=False,
            )
    model.name_or_path = model.config.name_or_path = name  # recorded with scores; not the cache folder
    model.config._commit_hash = source.commit(folder)  # as transformers sets it
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ValueError(f"the checkpoint {name} lacks weights: {len(missing)}, such as {missing[0]}.")
    for weight, values in model.state_dict().items():
        # minimum and maximum suffice: both are NaN if any value is
        is_checked = values.is_floating_point() and values.numel()
        if is_checked and not all(map(math.isfinite, map(float, values.aminmax()))):
            raise ValueError(f"the checkpoint {name} has weights that are not finite, such as {weight}.")
    return model.to(device), processor


def _dtype(dtype: "str | torch.dtype") -> "str | torch.dtype":
    """The dtype of that name, `"auto"` as it is.

    Raises:
        ValueError: A model can't have it.
    """
    import torch

    if dtype == AUTO:
        return AUTO
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, found {dtype!r}.")
    return found


def load_graphs(
    source: Source, backend: str, graphs: str | Path | None = None, num_threads: int | None = None
) -> "tuple[GraphBackend, str | None]":
    """The graphs of a checkpoint, and the commit of its weights if it is on the Hub.

    Args:
        source: A checkpoint, or a folder of whole graphs.
        backend: One of `GRAPH_RUNTIMES`.
        graphs: Folder of the graphs; by default `onnx` in the checkpoint.
        num_threads: Threads for the graphs; by default OMP_NUM_THREADS or the number of cores.

    Raises:
        FileNotFoundError: No such checkpoint; [`NoGraphsError`] if it has no graphs.
        MissingExtraError: The backend isn't installed.
        OSError: The Hub failed, timed out or closed the connection.
        ValueError: Not a checkpoint, or a damaged one; [`GraphsError`] if the graphs are damaged or don't match it.
    """
    from .inference.graphs import GraphBackend, GraphsError

    if source.is_graphs:
        return GraphBackend(source.name, backend, num_threads), None
    folder = source.folder(CONFIG)  # first, as in load_checkpoint
    check_config(source.name, folder / CONFIG)
    files = (*MAX_BYTES, WEIGHTS) if graphs else (*MAX_BYTES, WEIGHTS, f"{GRAPHS_FOLDER}/*")
    folder = source.folder(*files, commit=source.commit(folder))
    with names_damaged(f"the checkpoint {source.name}"):
        check_files(source.name, folder)
    graphs = Path(graphs or folder / GRAPHS_FOLDER)
    loaded = GraphBackend(graphs, backend, num_threads, folder)
    if loaded.are_whole and loaded.settings["weights"] != sha256_of(folder / WEIGHTS):
        raise GraphsError(_other_weights_message(source.name, graphs))
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
    except (AttributeError, ValueError):  # loading it reports what is wrong
        return False


def encoder_folder(source: Source) -> Path:
    """Folder of a pretrained encoder's files, downloaded if `source` is on the Hub.

    Raises:
        FileNotFoundError: No such folder or Hub repository.
        OSError: The Hub failed, timed out or closed the connection.
        ValueError: Not an encoder, a damaged one, or one without safetensors.
    """
    folder = source.folder(CONFIG)
    _check_encoder_config(source.name, folder / CONFIG)
    files = (CONFIG, "preprocessor_config.json", "processor_config.json", "model*.safetensors", WEIGHTS_INDEX)
    folder = source.folder(*files, commit=source.commit(folder))
    with names_damaged(f"the encoder {source.name}", OSError, UnsafeWeightsError):
        _check_encoder_weights(folder, weights_files(f"encoder {source.name}", folder))
    return folder


def weights_files(what: str, folder: Path) -> Sequence[Path]:
    """A model's weights files, as transformers would choose them.

    Args:
        what: Description of the model, for the message.
        folder: The model's folder.

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
            f"the {what} has no safetensors weights, and other formats are not loaded: a pickle can run any code. "
            "Load it where you trust it and save it with save_pretrained(), which writes safetensors."
        )
    return [folder / each for each in names]


def check_work(model: "GRUCaptionerForConditionalGeneration", processor: "GRUCaptionerProcessor") -> None:
    """Rejects an encoder that would need too much time or memory per image.

    Raises:
        ValueError: With the reason.
    """
    _check_sides(processor.image_processor)
    if processor.image_size is not None:
        _check_cost(_on_meta_device(model.config).encoder.vision, processor.image_size)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hides transformers' progress bar for loading weights, which takes only a second here."""
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
    """Wraps loading of a checkpoint: libraries raise errors of any kind when a file is damaged.

    Raises:
        ValueError: Names what is damaged.
    """
    try:
        yield
    except MemoryError:  # of this machine
        raise
    except let_through:
        raise
    except Exception as error:
        raise ValueError(f"{what} is damaged or its files don't fit together ({reason_of(error)}).") from error


def _check_weights(folder: Path, processor: "GRUCaptionerProcessor") -> None:
    """Rejects a model that doesn't match its weights file, before memory is allocated for what the file lacks, and one
    that would need too much time or memory per image."""
    from safetensors import safe_open

    from .model import GRUCaptionerConfig

    _check_sides(processor.image_processor)
    if not (weights := folder / WEIGHTS).is_file():
        return
    model = _on_meta_device(GRUCaptionerConfig.from_pretrained(folder))
    expected = model.state_dict()
    if sum(values.numel() for values in model.buffers()) > MAX_VALUES:  # some are computed, not loaded
        raise ValueError("its encoder has buffers that are too large")
    with safe_open(weights, "np") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118, not a dict
    for key in expected.keys() & shapes.keys():
        if shapes[key] != tuple(expected[key].shape):
            raise ValueError(f"{key} is {shapes[key]} in the file and {tuple(expected[key].shape)} by config.json")
    if sum(values.numel() for values in expected.values()) > 2 * sum(map(math.prod, shapes.values())):
        raise ValueError("the file lacks most of its weights")
    if processor.image_size is not None:
        _check_cost(model.encoder.vision, processor.image_size)


def _on_meta_device(config: Any) -> "GRUCaptionerForConditionalGeneration":
    """A captioner with shapes but no memory."""
    import torch

    from .model import GRUCaptionerForConditionalGeneration

    with torch.device("meta"):
        return GRUCaptionerForConditionalGeneration(config)


def _check_sides(image_processor: Any) -> None:
    """Rejects image sizes that would not fit in memory."""
    for setting in ("size", "crop_size", "pad_size"):
        sides = dict(getattr(image_processor, setting, None) or {})
        if not all(side is None or 1 <= side <= MAX_SIDE for side in sides.values()):
            raise ValueError(f"{setting} of its images is not 1 to {MAX_SIDE} pixels")


def _check_cost(vision: Any, image_size: tuple[int, int]) -> None:
    """Checks the cost of encoding one image of that height and width, and the shape of its regions; `vision` is on the
    meta device."""
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

    image, shape = torch.empty(1, 3, *image_size, device="meta"), None
    with torch.no_grad(), Largest() as largest, FlopCounterMode(display=False) as counter:
        try:
            shape = tuple(vision.eval()(image).shape)
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):  # control flow that depends on pixel values; what ran so far is counted
                raise
    if counter.get_total_flops() > MAX_OPERATIONS or largest.values > MAX_VALUES:
        raise ValueError(
            f"an image of {image_size[0]} x {image_size[1]} pixels would take its encoder too much time or memory"
        )
    if shape is not None and (len(shape) != 3 or shape[1] < 1 or shape[-1] != vision.region_size):
        config = vision.backbone.config
        raise ValueError(
            f"{getattr(config, 'architecture', config.model_type)} can't be the vision encoder: its regions have the "
            f"shape {shape}, not (1, regions, {vision.region_size})"
        )


def _check_encoder_config(name: str, path: Path) -> None:
    """Rejects a config that would take forever to build, before any other file is downloaded or read."""
    if not path.is_file():
        raise ValueError(f"{name} is not an encoder: it has no {CONFIG}.")
    try:
        config = read_json(path)
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{name} is not an encoder: its {CONFIG} can't be read.") from error
    check_layers(f"encoder {name}", config)
    # timm configs say in `pretrained_cfg` where their original weights come from; these are never requested
    check_encoder(name, config)


def _check_encoder_weights(folder: Path, weights: Sequence[Path]) -> None:
    """Rejects an encoder that doesn't match its files, before memory is allocated for what they lack."""
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):  # shapes but no memory
        expected = AutoModel.from_config(
            AutoConfig.from_pretrained(folder, trust_remote_code=False), trust_remote_code=False
        ).state_dict()
    num_found = 0
    for path in weights:
        with safe_open(path, "np") as file:
            num_found += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118, no dict
    if sum(values.numel() for values in expected.values()) > 2 * num_found:
        raise ValueError("the files lack most of its weights")


def _other_weights_message(name: str, graphs: Path) -> str:
    if name == str(SHIPPED_CHECKPOINT):
        return (
            f"the graphs in {graphs} were not exported from the package's checkpoint: also give the checkpoint that "
            "they were exported from (--checkpoint FOLDER), or, to caption by graphs alone, their own folder "
            f"(--checkpoint {graphs})."
        )
    return (
        f"the graphs in {graphs} were exported from other weights than those of {name}: give the checkpoint that they "
        f"were exported from, or export them again (gru-captioner export {name} --output {graphs})."
    )
