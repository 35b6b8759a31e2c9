"""Mixes several sources in one training set, each with its own sampling rate, loss weight and number of captions.

As everywhere in training, samples are a function of seed, epoch and image: a resumed run gives the same weights.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .sources import WEIGHTS

CAPTIONS_DRAW = 1  # appended to the seed for sampling captions, so that it differs from the view's


@dataclass(frozen=True)
class MixedSource:
    """The images of one source, and how they are used.

    Args:
        rows: Map-style rows with `captions` and a settable `epoch`, or a stream from `stream_captions`.
        repeat: Times that each image occurs per epoch, above 0. A fraction selects that share of the images, the same
            ones in each epoch. For streams, a source's share of the mixture is its `repeat` divided by their sum.
        weight: Factor for the weight of each caption.
        captions_per_epoch: Maximum number of captions per image, resampled each time; None for all.
    """

    rows: Any
    repeat: float = 1.0
    weight: float = 1.0
    captions_per_epoch: int | None = None

    def adapt(self, row: dict[str, Any], draw: tuple[int, ...]) -> dict[str, Any]:
        """A row with sampled captions and their weights. `draw` is the seed."""
        captions, weights = row["captions"], row.get(WEIGHTS)
        if weights is None and self.weight != 1:
            weights = [1.0] * len(captions)
        kept: Sequence[int] = range(len(captions))
        if self.captions_per_epoch is not None and len(captions) > self.captions_per_epoch:
            random = np.random.default_rng((*draw, CAPTIONS_DRAW))
            kept = sorted(random.choice(len(captions), self.captions_per_epoch, replace=False).tolist())
        adapted = {**row, "captions": [captions[index] for index in kept]}
        return adapted if weights is None else {**adapted, WEIGHTS: [self.weight * weights[index] for index in kept]}


def images_of_epoch(num_images: int, repeat: float, seed: int = 0) -> np.ndarray:
    """Indices of the images in an epoch, `(round(num_images * repeat),)`: all of them `floor(repeat)` times, then a
    fixed subset for the fractional part, in the order of the source."""
    whole = math.floor(repeat)
    share = round((repeat - whole) * num_images)
    drawn = np.sort(np.random.default_rng(seed).permutation(num_images)[:share])
    return np.concatenate([np.tile(np.arange(num_images), whole), drawn])


class Mixture(torch.utils.data.Dataset):
    """The rows of all sources as one dataset, source by source.

    An image that occurs several times in an epoch has a different view and different captions each time.
    """

    def __init__(self, sources: Sequence[MixedSource], seed: int = 0):
        self.sources = sources
        self.seed = seed
        self.epoch = 0
        images = [images_of_epoch(len(source.rows), source.repeat, seed) for source in sources]
        self.first = np.cumsum([0, *map(len, images)])  # index of each source's first row
        if not self.first[-1]:
            raise ValueError("no image is left to train on: raise the repeat of a source in data.source.")
        self.image = np.concatenate(images)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = int(np.searchsorted(self.first, index, side="right")) - 1
        source, image = self.sources[number], int(self.image[index])
        copy, copies = (index - int(self.first[number])) // len(source.rows), math.ceil(source.repeat)
        source.rows.epoch = self.epoch * copies + copy  # each copy is a separate epoch to them
        return source.adapt(source.rows[image], (self.seed, source.rows.epoch, image))


class MixedStream:
    """An infinite mixture of several streams: each is restarted when it ends.

    `state_dict()` has plain values, and is the position after the last row yielded.
    """

    def __init__(self, sources: Sequence[MixedSource], seed: int = 0):
        self.sources = sources
        self.seed = seed
        self._drawn = 0
        self._rounds = [0] * len(sources)
        self._states: list[dict[str, Any] | None] = [None] * len(sources)  # of streams not yet read
        self._is_read = [False] * len(sources)

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the stream is infinite."""

    def state_dict(self) -> dict[str, Any]:
        streams = [
            source.rows.state_dict() if is_read else state
            for source, is_read, state in zip(self.sources, self._is_read, self._states, strict=True)
        ]
        return {"drawn": self._drawn, "rounds": list(self._rounds), "streams": streams}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._drawn, self._rounds, self._states = state["drawn"], list(state["rounds"]), list(state["streams"])
        self._is_read = [False] * len(self.sources)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        shares = np.array([source.repeat for source in self.sources]) / sum(source.repeat for source in self.sources)
        iterators = [self._rows(number) for number in range(len(self.sources))]
        while True:
            number = int(np.random.default_rng((self.seed, self._drawn)).choice(len(shares), p=shares))
            row = next(iterators[number])
            self._drawn += 1
            yield self.sources[number].adapt(row, (self.seed, self._drawn))

    def _rows(self, number: int) -> Iterator[dict[str, Any]]:
        stream, state = self.sources[number].rows, self._states[number]
        found_any = state is not None
        while True:
            stream.set_epoch(self._rounds[number])
            if state is not None:
                stream.load_state_dict(state)
            for row in stream:
                found_any = self._is_read[number] = True
                yield row
            if not found_any:
                raise ValueError("a stream has no images for this process: use fewer processes or more shards.")
            self._rounds[number] += 1
            state = None
