"""The order in which photos are learned from, the same whatever the number of processes and however often interrupted.

All randomness is a function of seed, epoch and photo. So a run can go on at any step without the steps before, and
several processes, each with its share of every step, learn together exactly what one would.
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
    """A data set that knows the epoch, on which its augmentation may depend."""

    epoch: int

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...


class EpochBatches:
    """Batches of rows that can be counted and picked. Each epoch sees every photo once, in an order of its own.

    Args:
        rows: The photos.
        collate: Rows -> batch.
        images_per_step: Photos of one step of the optimizer, over all processes.
        micro_batches: Parts that a process's share of a step is cut into, for less memory.
        seed: Of the order.
        process, processes: This process and how many there are.
        num_workers: Processes that read and collate ahead; 0 does it in this one.
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
                f"{images_per_step} images a step can't be shared out among {processes} processes in {micro_batches} "
                f"parts each: take at least {processes * micro_batches}."
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
            generator=torch.Generator(),  # else each epoch would draw from the generator that dropout draws from
        )
        self.steps_per_epoch = self.sampler.steps_per_epoch

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """This process's batches of each step from `first_step` on, `micro_batches` a step."""
        self.rows.epoch = self.sampler.epoch = epoch
        self.sampler.first_step = first_step
        with _workers_named():
            batches = iter(self.loader)
            while step := [batch for _, batch in zip(range(self.micro_batches), batches, strict=False)]:
                yield step

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a step's batch follows from its number."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@contextmanager
def _workers_named() -> Iterator[None]:
    """What a process that reads ahead has stumbled over, or died of, in a line that says what to do.

    Raises:
        OSError: It died, or what it reads can't be read. A mistake of ours passes as it is.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        text = str(error).strip()
        if isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid"):
            raise OSError(
                f"a process that reads photos ahead died ({text.rstrip('.')}): make room in memory or take fewer "
                "data.num_workers, then run the same command again."
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
            images = np.resize(images, max(len(images), parts))  # repeats some where a last step has too few for all
            for part in np.array_split(images, parts)[self.process * self.micro_batches :][: self.micro_batches]:
                yield part.tolist()


class StreamedBatches:
    """Batches of a stream that is too long to be counted, begun anew when it ends; an "epoch" is a number of steps.

    Photos are shuffled in blocks: a block is read, then drawn from in random order. A state is the stream's own state
    at the beginning of the block and the place inside, so to go on means to read less than one block again.

    Args:
        stream: This process's share, a `datasets.IterableDataset` of rows with `image` and `captions`.
        collate: Rows -> batch.
        images_per_batch: Photos of a batch of this process.
        steps_per_epoch: Steps from validation to validation.
        micro_batches: Batches of a step.
        block_size: Photos held in memory to be shuffled; decoded they are about a megabyte each.
        seed: Of the order.
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
        self._place: dict[str, Any] = {"round": 0, "block": 0, "row": 0, "stream": None}
        self._rows: Iterator[dict[str, Any]] | None = None

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """The batches of each step from `first_step` on; where the stream goes on is in the state, not in `epoch`."""
        if self._rows is None:
            self._rows = self._shuffled_rows()
        for _ in range(first_step, self.steps_per_epoch):
            yield [
                self.collate([next(self._rows) for _ in range(self.images_per_batch)])
                for _ in range(self.micro_batches)
            ]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the last batch that was given out; plain values."""
        return dict(self._place)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._place = dict(state)
        self._rows = None

    def _shuffled_rows(self) -> Iterator[dict[str, Any]]:
        while True:
            place = self._place
            self.stream.set_epoch(place["round"])
            if place["stream"] is not None:
                self.stream.load_state_dict(place["stream"])
            rows = iter(self.stream)
            found_any = place["stream"] is not None
            while block := [row for _, row in zip(range(self.block_size), rows, strict=False)]:
                found_any = True
                after = self.stream.state_dict()
                order = np.random.default_rng((self.seed, place["round"], place["block"])).permutation(len(block))
                for number in range(place["row"], len(block)):
                    self._place = {**place, "row": number + 1}
                    yield block[order[number]]
                place = {"round": place["round"], "block": place["block"] + 1, "row": 0, "stream": after}
            if not found_any:
                raise ValueError("the stream has no photo for this process: take fewer processes or more shards.")
            self._place = {"round": place["round"] + 1, "block": 0, "row": 0, "stream": None}
