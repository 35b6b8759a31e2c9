"""The order of training images, independent of the number of processes and of interruptions.

All randomness is a function of seed, epoch and image. So a run can resume at any step without replaying earlier ones,
and several processes, each with a shard of every step, train exactly as a single one would.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

Batch = dict[str, Any]
Collate = Callable[[list[dict[str, Any]]], Batch]


class Rows(Protocol):
    """A dataset with an epoch number, on which its augmentation may depend."""

    epoch: int

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...


class EpochBatches:
    """Batches of a map-style dataset. Each epoch visits every image once, in a new random order.

    Args:
        rows: The images.
        collate: Rows -> batch.
        images_per_step: Images per optimizer step, over all processes.
        micro_batches: Micro-batches per step and process, for gradient accumulation.
        seed: Seed of the order.
        process, processes: Index of this process and number of processes.
        num_workers: Worker processes that load and collate; 0 to do so in this process.
    """

    def __init__(
        self,
        rows: Rows,
        collate: Collate,
        images_per_step: int,
        *,
        micro_batches: int = 1,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
        num_workers: int = 0,
    ):
        if images_per_step < processes * micro_batches:
            raise ValueError(
                f"{images_per_step} images per step can't be split among {processes} processes in {micro_batches} parts"
                f" each: set optimization.images_per_step to at least {processes * micro_batches}."
            )
        self.rows = rows
        self.micro_batches = micro_batches
        self.sampler = _EpochOrder(len(rows), images_per_step, micro_batches, seed, process, processes)
        self.loader: DataLoader = DataLoader(
            rows,  # type: ignore[arg-type]
            batch_sampler=self.sampler,
            collate_fn=collate,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise each epoch would advance the global generator, which dropout uses
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """This process's batches for each step from `first_step` on, `micro_batches` per step."""
        self.rows.epoch = self.sampler.epoch = epoch
        self.sampler.first_step = first_step
        with _explains_workers():
            batches = iter(self.loader)
            while step := [batch for _, batch in zip(range(self.micro_batches), batches, strict=False)]:
                yield step

    def state_dict(self) -> dict[str, Any]:
        """Empty: the step number determines its batches."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@contextmanager
def _explains_workers() -> Iterator[None]:
    """Turns errors of DataLoader workers into a line that says what to do.

    Raises:
        OSError: A worker died, or can't read its data. Programming errors pass unchanged.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        text = str(error).strip()
        if isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid"):
            raise OSError(
                f"a prefetching process died ({text.rstrip('.')}): free memory or lower data.num_workers, then run the "
                "same command again."
            ) from error
        if not isinstance(error, RuntimeError) and " in DataLoader worker process " in text:  # a whole traceback
            raise OSError(text.splitlines()[-1]) from error
        raise


class _EpochOrder(Sampler):
    def __init__(self, num_images, images_per_step, micro_batches, seed, process, processes):
        self.num_images, self.images_per_step, self.micro_batches = num_images, images_per_step, micro_batches
        self.seed, self.process, self.processes = seed, process, processes
        self.epoch = self.first_step = 0
        self.steps_per_epoch = -(-num_images // images_per_step)

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first_step) * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_images)
        parts = self.processes * self.micro_batches
        for step in range(self.first_step, self.steps_per_epoch):
            images = order[step * self.images_per_step : (step + 1) * self.images_per_step]
            images = np.resize(images, max(len(images), parts))  # repeats some if the last step has fewer than parts
            for part in np.array_split(images, parts)[self.process * self.micro_batches :][: self.micro_batches]:
                yield part.tolist()


class StreamedBatches:
    """Batches of a stream of unknown length, restarted when it ends; an "epoch" is a fixed number of steps.

    Images are shuffled in blocks: a block is read, then drawn from in random order. The state is the stream's own state
    at the start of the block and the position within it, so that resuming rereads less than one block.

    Args:
        stream: This process's shard, a `datasets.IterableDataset` of rows with `image` and `captions`.
        collate: Rows -> batch.
        images_per_batch: Images per batch of this process.
        steps_per_epoch: Steps between validations.
        micro_batches: Batches per step.
        block_size: Size of the shuffle buffer in images, about a megabyte each when decoded.
        seed: Seed of the order.
    """

    def __init__(
        self,
        stream: Any,
        collate: Collate,
        images_per_batch: int,
        steps_per_epoch: int,
        *,
        micro_batches: int = 1,
        block_size: int = 512,
        seed: int = 0,
    ):
        self.stream = stream
        self.collate = collate
        self.images_per_batch = images_per_batch
        self.steps_per_epoch = steps_per_epoch
        self.micro_batches = micro_batches
        self.block_size = block_size
        self.seed = seed
        self._position: dict[str, Any] = {"round": 0, "block": 0, "row": 0, "stream": None}
        self._rows: Iterator[dict[str, Any]] | None = None

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """The batches for each step from `first_step` on; the state, not `epoch`, determines where to resume."""
        if self._rows is None:
            self._rows = self._shuffled_rows()
        for _ in range(first_step, self.steps_per_epoch):
            yield [
                self.collate([next(self._rows) for _ in range(self.images_per_batch)])
                for _ in range(self.micro_batches)
            ]

    def state_dict(self) -> dict[str, Any]:
        """Position of the stream after the last batch yielded; plain values."""
        return dict(self._position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._position = dict(state)
        self._rows = None

    def _shuffled_rows(self) -> Iterator[dict[str, Any]]:
        while True:
            position = self._position
            self.stream.set_epoch(position["round"])
            if position["stream"] is not None:
                self.stream.load_state_dict(position["stream"])
            rows = iter(self.stream)
            found_any = position["stream"] is not None
            while block := [row for _, row in zip(range(self.block_size), rows, strict=False)]:
                found_any = True
                after = self.stream.state_dict()
                order = np.random.default_rng((self.seed, position["round"], position["block"])).permutation(len(block))
                for number in range(position["row"], len(block)):
                    self._position = {**position, "row": number + 1}
                    yield block[order[number]]
                position = {"round": position["round"], "block": position["block"] + 1, "row": 0, "stream": after}
            if not found_any:
                raise ValueError("the stream has no images for this process: use fewer processes or more shards.")
            self._position = {"round": position["round"] + 1, "block": 0, "row": 0, "stream": None}
