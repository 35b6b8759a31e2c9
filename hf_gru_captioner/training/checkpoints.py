"""Atomic checkpoints: the best model, and the states from which a run resumes.

    <output_dir>/checkpoint/                     model, processor and graphs
    <output_dir>/state/step-00000400/            Accelerate's state: weights as safetensors, optimizer, random states
                       averaged.safetensors      the moving average
                       progress.json             steps, losses, scores
                       manifest.json             id of the run; size and SHA-256 of each file above

Everything is written atomically, the manifest last. A folder without a matching manifest is incomplete or belongs to
another run.
"""

import copy
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from accelerate.utils import gather_object
from safetensors import SafetensorError

from ..errors import MissingExtraError, needs_extra, reason_of
from ..files import GRAPHS_FOLDER, PARTIAL, atomic_folder, flush, sha256_of

_logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATES = "state"  # folder of the states in the output folder
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # what torch and safetensors raise on a full disk


class Savable(Protocol):
    """A model or a processor."""

    def save_pretrained(self, save_directory: str) -> object: ...


class CheckpointGraphs:
    """The graphs of a checkpoint, saved like model and processor, but after them.

    They depend on the architecture, not on the weights, so they are exported once and copied into each checkpoint. If
    the export fails, the reason is logged, and the checkpoint is complete without them.

    Args:
        model: The captioner; it is copied.
        processor: Its processor.
    """

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor
        self.files: dict[str, bytes] | None = None

    def save_pretrained(self, save_directory: str) -> None:
        """Exports the graphs, or writes those exported before. Runs on one process."""
        if self.files is None:
            self.files = self._export(Path(save_directory))
        elif self.files:
            folder = Path(save_directory) / GRAPHS_FOLDER
            folder.mkdir()
            for name, content in self.files.items():
                (folder / name).write_bytes(content)

    def _export(self, checkpoint: Path) -> dict[str, bytes]:
        try:
            with needs_extra("export"):
                import onnxruntime  # noqa: F401
                import onnxscript  # noqa: F401

                from ..inference.export import add_graphs
            folder = add_graphs(checkpoint, copy.deepcopy(self.model).float().cpu(), self.processor)
        except OSError:  # such as a full disk, where the checkpoint wouldn't fit either
            raise
        except MissingExtraError as error:
            _logger.info("graphs          none: %s", error)
        except Exception as error:  # the exporter doesn't support every encoder, and raises any type of error
            _logger.warning("the checkpoint has no graphs and only runs on PyTorch: %s", reason_of(error))
        else:
            return {path.name: path.read_bytes() for path in folder.iterdir()}
        return {}


def save_whole(folder: str | Path, *parts: Savable) -> None:
    """Saves a model and its processor into a folder, replacing it. Runs on one process.

    Raises:
        OSError: It can't be written; the old checkpoint is intact.
    """
    try:
        with atomic_folder(folder) as temporary:
            for part in parts:
                part.save_pretrained(str(temporary))
    except WRITE_ERRORS as error:
        previous = f"The previous one, {folder}, is intact" if Path(folder).exists() else "There is no earlier one"
        raise OSError(f"the checkpoint can't be written ({error}). {previous}: make room and run again.") from error


class TrainingStates:
    """Saves and finds the states of one run.

    Each machine keeps the states of its own processes, so no shared disk is needed; on a shared disk, machines write to
    separate folders. Methods run on every process.

    Args:
        folder: Folder of the states.
        run: Id of this run: states of other runs are skipped.
        accelerator: The processes.
        keep: Number of states to keep.
    """

    def __init__(self, folder: str | Path, run: str, accelerator: Any, keep: int = 2):
        machine = int(os.environ.get("GROUP_RANK", 0))  # the machine's number, from torchrun and accelerate launch
        self.folder = Path(folder) if machine == 0 else Path(f"{folder}-machine-{machine}")
        self.run = run
        self.accelerator = accelerator
        self.keep = keep

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Lets every process `write` its part of a new state, then deletes the oldest states.

        Raises:
            OSError: It can't be written; earlier states are intact.
        """
        temporary = self.folder / f"step-{step:08d}{PARTIAL}"
        first = self.accelerator.is_local_main_process
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        try:
            write(temporary)
            self.accelerator.wait_for_everyone()
            if first:
                files = [file for file in sorted(temporary.rglob("*")) if file.is_file()]
                content = {str(file.relative_to(temporary)): _size_and_sha256(file) for file in files}
                (temporary / MANIFEST).write_text(
                    json.dumps({"run": self.run, "step": step, "files": content}, indent=2)
                )
                flush(temporary)
                # An existing one is incomplete, otherwise the run would have resumed from it.
                shutil.rmtree(self._state_folder(step), ignore_errors=True)
                temporary.rename(self._state_folder(step))
                for old in self._folders()[: -self.keep]:
                    shutil.rmtree(old)
        except WRITE_ERRORS as error:
            shutil.rmtree(temporary, ignore_errors=True)
            kept = [folder.name for folder in self._folders()]
            raise OSError(
                f"the state after step {step} can't be written to {self.folder} ({error}). "
                f"{f'{kept[-1]} is intact' if kept else 'There is no earlier one'}: make room and run the same command "
                "again."
            ) from error
        self.accelerator.wait_for_everyone()

    def newest(self) -> tuple[int, Path] | None:
        """Step and folder of the newest state that is complete on every machine; warns of unusable ones."""
        complete: dict[int, Path] = {}
        for folder in self._folders():
            problem = self._problem(folder)
            if problem is None:
                complete[int(folder.name.removeprefix("step-"))] = folder
            elif self.accelerator.is_local_main_process:
                _logger.warning("%s is skipped: %s.", folder, problem)
        everywhere = set(complete).intersection(*gather_object([set(complete)]))
        return (max(everywhere), complete[max(everywhere)]) if everywhere else None

    @property
    def newest_step(self) -> int:
        """Step of the newest state on this machine, complete or not; 0 without one."""
        return max((int(folder.name.removeprefix("step-")) for folder in self._folders()), default=0)

    def _problem(self, folder: Path) -> str | None:
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            if manifest["run"] != self.run:
                return "it belongs to another run"
            for name, size_and_sha256 in manifest["files"].items():
                if _size_and_sha256(folder / name) != size_and_sha256:
                    return f"{name} is damaged"
        except FileNotFoundError as error:
            return f"{Path(error.filename).name} is missing"
        except (ValueError, KeyError, TypeError) as error:
            return f"{MANIFEST} is damaged ({error})"
        return None

    def _state_folder(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _folders(self) -> Sequence[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.name.removeprefix("step-").isdigit())


def _size_and_sha256(path: Path) -> list[Any]:
    return [path.stat().st_size, sha256_of(path)]
