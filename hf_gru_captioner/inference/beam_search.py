"""Greedy and beam search in NumPy, over any decode step: the captions of transformers' generate(), faster.

A word through generate() costs more of its loop than of a model this small. Here a word costs one call of the step and
a few array operations, whatever runs the step: PyTorch, ONNX Runtime or OpenVINO. What a caption's words looked at and
what they were chosen from is kept by the step and read back at the end, so nothing is computed twice.

The beam search is that of transformers 5.23 with `early_stopping=False`, its default: 2 K candidates a step, the best K
unfinished go on, a caption's score is its log-probability divided by its length to the power of the length penalty, and
an image is done when the best that goes on, divided so, is no better than its worst finished caption. The step goes on
with the images that are not done.

Candidates that differ by no more than `TIE` count as equal, and the smaller token id comes first: else
the last bits of a float32, and so the processor, the batch and the runtime, would decide. Of finished captions that are
equal so, the one that was finished first comes first.

Letters in shape comments:
    B images    K beams    N rows of the step, image by image (N = B K)    P regions
    T words     H hidden   V vocabulary
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

BLOCK = 64  # values
TIE = np.float32(1e-5)  # nats; float32 runtimes differ by less
NEVER = np.float32(-1e9)  # log-probability of what may not be chosen


class StepOutput(NamedTuple):
    """
    Attributes:
        log_probabilities: Of the next word, `(N, V)` float32.
        states: After this word, `(2, N, H)`.
        attention: Weights over the regions, `(N, P)`, or None.
    """

    log_probabilities: np.ndarray
    states: np.ndarray
    attention: np.ndarray | None


class Step(Protocol):
    """The decode step of `B` images."""

    def __call__(self, tokens: np.ndarray, states: np.ndarray) -> StepOutput:
        """One word further: the last words `(N,)` int64 and the states before them `(2, N, H)` -> [`StepOutput`]."""

    def of_images(self, images: Sequence[int] | np.ndarray) -> "Step":
        """The step of some of its images, by their places."""


@dataclass(frozen=True)
class Hypothesis:
    """A caption that the search found.

    Attributes:
        tokens: Its words, the end token included if it came to one, `(T,)`.
        log_probabilities: Of each in its position, `(T,)`.
        attention: Where the model looked for each, `(T, P)`, or None.
        alternatives, alternative_log_probabilities: The likeliest tokens in each position, the best first,
            `(T, alternatives)`.
    """

    tokens: np.ndarray
    log_probabilities: np.ndarray
    attention: np.ndarray | None
    alternatives: np.ndarray
    alternative_log_probabilities: np.ndarray


def beam_search(
    step: Step,
    states: np.ndarray,
    *,
    start: int,
    end: int,
    num_beams: int,
    num_captions: int,
    max_words: int,
    length_penalty: float,
    suppressed: Sequence[int] = (),
    begin: Sequence[int] = (),
    num_alternatives: int = 0,
    report: Callable[[list[int]], None] | None = None,
) -> list[list[Hypothesis]]:
    """Writes captions; greedily with one beam.

    Args:
        step: The decoder.
        states: Its states before the start token, of each image `(2, B, H)`.
        start, end: Their tokens.
        num_beams: Captions of an image that are followed up at once.
        num_captions: Captions of each image that are returned, `num_beams` at most, the best first.
        max_words: Words of a caption at most, the end token included, those of its beginning not.
        length_penalty: Of beam search; greedy search has none.
        suppressed: Tokens that are never written.
        begin: Tokens that each caption begins with. Captions are ranked by what comes behind them, as generate() ranks
            those that go on from `decoder_input_ids`.
        num_alternatives: How many of the likeliest tokens are told of each position.
        report: Of greedy search of one image, called with the tokens so far after each.
    """
    if not 1 <= num_captions <= num_beams:
        raise ValueError(f"{num_beams} beams can't give {num_captions} captions: take 1 to {num_beams}.")
    given: list[StepOutput] = []
    for token in (start, *begin)[:-1]:
        given.append(step(np.full(states.shape[1], token, dtype=np.int64), states))
        states = given[-1].states
    last = begin[-1] if begin else start
    settings = _Settings(last, end, num_beams, num_captions, max_words, length_penalty, list(suppressed))
    if num_beams == 1:
        found = [[path] for path in _greedy(step, states, settings, report)]
    else:
        found = _beam(step, states, settings)
    return [
        [path.behind(given, image, begin).hypothesis(num_alternatives) for path in of_image]
        for image, of_image in enumerate(found)
    ]


class _Settings(NamedTuple):
    """Those of [`beam_search`]."""

    start: int
    end: int
    num_beams: int
    num_captions: int
    max_words: int
    length_penalty: float
    suppressed: list[int]


class _Path(NamedTuple):
    """The words of a caption, and the row of each step that they were chosen in."""

    outputs: Sequence[StepOutput]
    rows: Sequence[int]
    tokens: Sequence[int]

    def behind(self, outputs: Sequence[StepOutput], image: int, tokens: Sequence[int]) -> "_Path":
        """This path behind words that each image was given, a row of the step for each image."""
        if not tokens:
            return self
        return _Path([*outputs, *self.outputs], [image] * len(tokens) + [*self.rows], [*tokens, *self.tokens])

    def hypothesis(self, num_alternatives: int) -> Hypothesis:
        steps = list(zip(self.outputs, self.rows, strict=False))  # the search may have gone on after this caption
        rows = [output.log_probabilities[row] for output, row in steps]  # of (V,) each
        attention = [output.attention[row] for output, row in steps if output.attention is not None]
        alternatives = np.zeros((len(rows), 0), dtype=np.int64)
        of_alternatives = np.zeros((len(rows), 0), dtype=np.float32)
        if num_alternatives:
            alternatives, of_alternatives = _largest(np.stack(rows), num_alternatives, len(rows[0]))
        return Hypothesis(
            tokens=np.array(self.tokens),
            log_probabilities=np.array([row[token] for row, token in zip(rows, self.tokens, strict=True)]),
            attention=np.stack(attention) if attention else None,  # (T, P)
            alternatives=alternatives,
            alternative_log_probabilities=of_alternatives,
        )


def _greedy(
    step: Step, states: np.ndarray, settings: _Settings, report: Callable[[list[int]], None] | None = None
) -> list[_Path]:
    num_images = states.shape[1]
    tokens = np.full(num_images, settings.start, dtype=np.int64)
    running = list(range(num_images))  # images whose captions go on, one a row of the step
    outputs: list[StepOutput] = []
    rows: list[list[int]] = [[] for _ in running]
    words: list[list[int]] = [[] for _ in running]
    for _ in range(settings.max_words):
        output = step(tokens, states)
        outputs.append(output)
        allowed = _without(output.log_probabilities, settings.suppressed)
        is_best = allowed >= allowed.max(axis=1, keepdims=True) - TIE  # (N, V)
        tokens = is_best.argmax(axis=1)  # (N,)
        for row, (image, token) in enumerate(zip(running, tokens.tolist(), strict=True)):
            rows[image].append(row)
            words[image].append(token)
        if report is not None:
            report(words[0])
        kept = (tokens != settings.end).nonzero()[0]
        if not len(kept):
            break
        if len(kept) < len(running):
            step, running = step.of_images(kept), [running[row] for row in kept]
        tokens, states = tokens[kept], output.states[:, kept]  # (N,), (2, N, H)
    return [_Path(outputs, *of_image) for of_image in zip(rows, words, strict=True)]


def _beam(step: Step, states: np.ndarray, settings: _Settings) -> list[list[_Path]]:
    num_images, num_beams = states.shape[1], settings.num_beams
    images = running = [_OfImage(settings) for _ in range(num_images)]
    states = states.repeat(num_beams, axis=1)  # (2, N, H)
    tokens = np.full(num_images * num_beams, settings.start, dtype=np.int64)  # (N,)
    outputs: list[StepOutput] = []
    for position in range(settings.max_words):
        output = step(tokens, states)
        outputs.append(output)
        so_far = np.array([image.running for image in running], dtype=np.float32)  # (B, K)
        totals = output.log_probabilities.reshape(len(running), num_beams, -1) + so_far[:, :, None]  # (B, K, V)
        if settings.suppressed:
            totals[:, :, settings.suppressed] = -np.inf
        vocab_size = totals.shape[-1]
        found = _ranked(totals.reshape(len(running), -1), 2 * num_beams, vocab_size)
        for place, (image, (best, log_probabilities)) in enumerate(zip(running, found, strict=True)):
            image.advance(place * num_beams, [divmod(index, vocab_size) for index in best], log_probabilities)
        kept = [place for place, image in enumerate(running) if not image.is_done]
        if position + 1 == settings.max_words or not kept:
            break
        rows = [place * num_beams + beam for place in kept for beam, _ in running[place].trail[-1]]  # N
        if len(kept) < len(running):
            step, running = step.of_images(kept), [running[place] for place in kept]
        tokens = np.array([word for image in running for _, word in image.trail[-1]], dtype=np.int64)  # (N,)
        states = output.states[:, rows]
    return [[image.path(outputs, rank) for rank in range(settings.num_captions)] for image in images]


class _OfImage:
    """The beams of one image: a few numbers a step, for which plain Python is faster than arrays.

    Attributes:
        running: Log-probabilities of the K captions that go on.
        trail: Of each step, the beam that each caption that goes on came from, and its word.
        is_done: Whether none that goes on can become better than the worst of K that are finished.
    """

    def __init__(self, settings: _Settings):
        self._settings = settings
        self.running = [0.0] + [float(NEVER)] * (settings.num_beams - 1)  # at first all beams are one
        self.trail: list[list[tuple[int, int]]] = []
        self.is_done = False
        self._first_rows: list[int] = []  # of each step, where its beams begin
        self._scores: list[float] = []  # of the finished captions, the best first
        self._ends: list[tuple[int, int, int]] = []  # step, beam before it and word that finished each

    def advance(self, first_row: int, candidates: list[tuple[int, int]], log_probabilities: list[float]) -> None:
        """Takes in the 2 K best candidates of a step, the best first: beam and word of each."""
        settings, num_beams = self._settings, self._settings.num_beams
        position = len(self._first_rows)
        self._first_rows.append(first_row)
        is_last = position + 1 == settings.max_words
        stops = [is_last or word == settings.end for _, word in candidates]
        going_on = [rank for rank, stop in enumerate(stops) if not stop]
        chosen = (going_on + [rank for rank, stop in enumerate(stops) if stop])[:num_beams]
        self.running = [log_probabilities[rank] + (float(NEVER) if stops[rank] else 0.0) for rank in chosen]
        self.trail.append([candidates[rank] for rank in chosen])

        divisor = (position + 1) ** settings.length_penalty
        finished = [rank for rank in range(min(num_beams, len(stops))) if stops[rank]]
        if finished:
            scores = self._scores + [log_probabilities[rank] / divisor for rank in finished]
            ends = self._ends + [(position, *candidates[rank]) for rank in finished]
            kept = _rank(scores, range(len(scores)), num_beams)
            self._scores, self._ends = [scores[index] for index in kept], [ends[index] for index in kept]
        worst = min(self._scores) if len(self._scores) == num_beams else float(NEVER)
        self.is_done = not self.running[0] / divisor > worst

    def path(self, outputs: Sequence[StepOutput], rank: int) -> _Path:
        """A finished caption, read back from its last word."""
        position, beam, word = self._ends[rank]
        rows, tokens = [self._first_rows[position] + beam], [word]
        for earlier in reversed(range(position)):
            beam, word = self.trail[earlier][beam]
            rows.append(self._first_rows[earlier] + beam)
            tokens.append(word)
        return _Path(outputs, rows[::-1], tokens[::-1])


def _without(log_probabilities: np.ndarray, suppressed: Sequence[int]) -> np.ndarray:
    if not suppressed:
        return log_probabilities
    allowed = log_probabilities.copy()  # the step's own are kept, for the alternatives
    allowed[:, suppressed] = -np.inf
    return allowed


def _largest(values: np.ndarray, count: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and values of the `count` largest of each row, the largest first, equal ones by `index % vocab_size`."""
    indices, found = zip(*_ranked(values, count, vocab_size), strict=True)
    return np.array(indices, dtype=np.int64), np.array(found, dtype=values.dtype)


def _ranked(values: np.ndarray, count: int, vocab_size: int) -> Iterator[tuple[list[int], list[float]]]:
    """The same as lists, row by row.

    At least `count` values of a row are no smaller than the `count` largest maxima of its blocks, so few are left to be
    sorted: a tenth of the time of argpartition().
    """
    num_blocks = values.shape[1] // BLOCK
    if not 0 < count <= num_blocks:
        bounds = np.full(len(values), -np.inf, dtype=values.dtype)
    else:
        maxima = values[:, : num_blocks * BLOCK].reshape(len(values), num_blocks, BLOCK).max(axis=2)
        bounds = np.partition(maxima, num_blocks - count, axis=1)[:, num_blocks - count] - TIE
    for row, bound in zip(values, bounds, strict=True):
        places = (row >= bound).nonzero()[0]
        indices, of_places = places.tolist(), row[places].tolist()
        kept = _rank(of_places, [(index % vocab_size, index) for index in indices], count)
        yield [indices[place] for place in kept], [of_places[place] for place in kept]


def _rank(values: Sequence[float], keys: Sequence[Any], count: int) -> list[int]:
    """Places of the `count` largest values, the largest first, equal ones by their keys."""
    order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
    first = 0
    while first < min(count, len(order)):
        bound = values[order[first]] - float(TIE)
        behind = first + 1
        while behind < len(order) and values[order[behind]] >= bound:
            behind += 1
        if behind > first + 1:
            order[first:behind] = sorted(order[first:behind], key=keys.__getitem__)
        first = behind
    return order[:count]
