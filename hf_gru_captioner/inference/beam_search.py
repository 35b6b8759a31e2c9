"""Greedy and beam search in NumPy over any decoder step: the same captions as transformers' generate(), faster.

With a model this small, generate() spends most of its time in its own loop. Here a word costs one decoder step and a
few array operations, whether PyTorch, ONNX Runtime or OpenVINO runs the step. Step outputs are kept and a caption's
attention and alternatives are read back at the end, so nothing is computed twice.

The beam search follows transformers 5.23 with `early_stopping=False`, the default: of the top 2 K candidates per step
the best K unfinished ones are continued. The score of a hypothesis is its log-probability divided by its length to the
power of the length penalty. An image is done when its best running hypothesis, scored the same way, is no better than
its worst finished one. Images that are done are dropped from the batch.

Candidates within `TIE` of each other count as equal, and the smaller token id wins: otherwise the last bits of a
float32, and thus the CPU, batch and runtime, would decide. Among tied finished hypotheses, the one that finished first
wins.

Letters in shape comments:
    B images    K beams    N batch rows, image by image (N = B K)    P regions
    T words     H hidden   V vocabulary
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np

BLOCK = 64  # values
TIE = np.float32(1e-5)  # nats; float32 runtimes differ by less
NEVER = np.float32(-1e9)  # log-probability of beams that must not be chosen


class StepOutput(NamedTuple):
    """
    Attributes:
        log_probabilities: Log-probabilities of the next token, `(N, V)` float32.
        states: New GRU states, `(2, N, H)`.
        attention: Attention weights over the regions, `(N, P)`, or None.
    """

    log_probabilities: np.ndarray
    states: np.ndarray
    attention: np.ndarray | None


class Step(Protocol):
    """The decoder step for `B` images."""

    def __call__(self, tokens: np.ndarray, states: np.ndarray) -> StepOutput:
        """Previous tokens `(N,)` int64 and GRU states `(2, N, H)` -> [`StepOutput`]."""

    def of_images(self, images: Sequence[int] | np.ndarray) -> "Step":
        """The step for a subset of its images, by index."""


@dataclass(frozen=True)
class Hypothesis:
    """A caption found by the search.

    Attributes:
        tokens: Token ids, including the end token if it was reached, `(T,)`.
        log_probabilities: Log-probability of each token, `(T,)`.
        attention: Attention weights for each token, `(T, P)`, or None.
        alternatives, alternative_log_probabilities: The likeliest tokens at each position, best first,
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
    no_repeat_ngram_size: int = 0,
    begin: Sequence[int] = (),
    num_alternatives: int = 0,
    report: Callable[[list[int]], None] | None = None,
) -> list[list[Hypothesis]]:
    """Generates captions; one beam means greedy search.

    Args:
        step: The decoder step.
        states: Initial states of each image, `(2, B, H)`.
        start, end: Ids of the start and end tokens.
        num_beams: Beams per image.
        num_captions: Captions to return per image, best first; at most `num_beams`.
        max_words: Maximum length of a caption, including the end token but not `begin`.
        length_penalty: Exponent of the length in beam search scores; unused by greedy search.
        suppressed: Token ids that are never generated; those outside the vocabulary are ignored, as in generate().
        no_repeat_ngram_size: If above 0, no n-gram of this many tokens occurs twice, `start` and `begin` included.
        begin: Token ids that every caption starts with. Only the tokens after them count for its score, as in
            generate() with `decoder_input_ids`.
        num_alternatives: How many of the likeliest tokens to return for each position.
        report: Called with the tokens so far after each step of a greedy search on one image.
    """
    if not 1 <= num_captions <= num_beams:
        raise ValueError(f"{num_beams} beams can't give {num_captions} captions: choose 1 to {num_beams}.")
    prefix: list[StepOutput] = []
    for token in (start, *begin)[:-1]:
        prefix.append(step(np.full(states.shape[1], token, dtype=np.int64), states))
        states = prefix[-1].states
    settings = _Settings(
        start=[start, *begin],
        end=end,
        num_beams=num_beams,
        num_captions=num_captions,
        max_words=max_words,
        length_penalty=length_penalty,
        suppressed=list(suppressed),
        no_repeat_ngram_size=no_repeat_ngram_size,
    )
    if num_beams == 1:
        paths = [[path] for path in _greedy(step, states, settings, report)]
    else:
        paths = _beam(step, states, settings)
    return [
        [path.with_prefix(prefix, image, begin).hypothesis(num_alternatives) for path in image_paths]
        for image, image_paths in enumerate(paths)
    ]


class _Settings(NamedTuple):
    """Arguments of [`beam_search`]; `start` includes the tokens of `begin`."""

    start: list[int]
    end: int
    num_beams: int
    num_captions: int
    max_words: int
    length_penalty: float
    suppressed: list[int]
    no_repeat_ngram_size: int

    def ban(self, log_probabilities: np.ndarray, hypotheses: Iterable[Sequence[int]]) -> None:
        """Rules out tokens that may not follow the given hypotheses, `(N, V)`, in place."""
        vocab_size = log_probabilities.shape[1]
        log_probabilities[:, [token for token in self.suppressed if 0 <= token < vocab_size]] = -np.inf
        if self.no_repeat_ngram_size > 0:
            for row, tokens in zip(log_probabilities, hypotheses, strict=True):
                row[self._repeating([*self.start, *tokens])] = -np.inf

    def _repeating(self, tokens: Sequence[int]) -> list[int]:
        """Tokens that would complete an n-gram that occurs in `tokens`."""
        length = self.no_repeat_ngram_size - 1
        last = tokens[max(0, len(tokens) - length) :]
        starts = range(len(tokens) - length)
        return [tokens[start + length] for start in starts if tokens[start : start + length] == last]


class _Path(NamedTuple):
    """The tokens of a hypothesis, with the step output and row that each was chosen from."""

    outputs: Sequence[StepOutput]
    rows: Sequence[int]
    tokens: Sequence[int]

    def with_prefix(self, outputs: Sequence[StepOutput], image: int, tokens: Sequence[int]) -> "_Path":
        """This path after a given prefix, whose steps have one row per image."""
        if not tokens:
            return self
        return _Path([*outputs, *self.outputs], [image] * len(tokens) + [*self.rows], [*tokens, *self.tokens])

    def hypothesis(self, num_alternatives: int) -> Hypothesis:
        steps = list(zip(self.outputs, self.rows, strict=False))  # the search may have continued after this caption
        rows = [output.log_probabilities[row] for output, row in steps]  # (V,) each
        attention = [output.attention[row] for output, row in steps if output.attention is not None]
        alternatives = np.zeros((len(rows), 0), dtype=np.int64)
        alternative_values = np.zeros((len(rows), 0), dtype=np.float32)
        if num_alternatives:
            alternatives, alternative_values = _largest(np.stack(rows), num_alternatives, len(rows[0]))
        return Hypothesis(
            tokens=np.array(self.tokens),
            log_probabilities=np.array([row[token] for row, token in zip(rows, self.tokens, strict=True)]),
            attention=np.stack(attention) if attention else None,  # (T, P)
            alternatives=alternatives,
            alternative_log_probabilities=alternative_values,
        )


def _greedy(
    step: Step, states: np.ndarray, settings: _Settings, report: Callable[[list[int]], None] | None = None
) -> list[_Path]:
    num_images = states.shape[1]
    tokens = np.full(num_images, settings.start[-1], dtype=np.int64)
    running = list(range(num_images))  # images with unfinished captions, one per row
    outputs: list[StepOutput] = []
    rows: list[list[int]] = [[] for _ in running]
    words: list[list[int]] = [[] for _ in running]
    for _ in range(settings.max_words):
        output = step(tokens, states)
        outputs.append(output)
        allowed = output.log_probabilities.copy()  # the originals are kept for the alternatives
        settings.ban(allowed, (words[image] for image in running))
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
    return [_Path(outputs, *path) for path in zip(rows, words, strict=True)]


def _beam(step: Step, states: np.ndarray, settings: _Settings) -> list[list[_Path]]:
    num_images, num_beams = states.shape[1], settings.num_beams
    images = running = [_ImageBeams(settings) for _ in range(num_images)]
    states = states.repeat(num_beams, axis=1)  # (2, N, H)
    tokens = np.full(num_images * num_beams, settings.start[-1], dtype=np.int64)  # (N,)
    outputs: list[StepOutput] = []
    for position in range(settings.max_words):
        output = step(tokens, states)
        outputs.append(output)
        so_far = np.array([log_p for image in running for log_p in image.running], dtype=np.float32)  # (N,)
        totals = output.log_probabilities + so_far[:, None]  # (N, V)
        settings.ban(totals, chain.from_iterable(image.words for image in running))
        vocab_size = totals.shape[-1]
        ranked = _ranked(totals.reshape(len(running), -1), 2 * num_beams, vocab_size)
        for index, (image, (best, log_probabilities)) in enumerate(zip(running, ranked, strict=True)):
            image.advance(index * num_beams, [divmod(flat, vocab_size) for flat in best], log_probabilities)
        kept = [index for index, image in enumerate(running) if not image.is_done]
        if position + 1 == settings.max_words or not kept:
            break
        rows = [index * num_beams + beam for index in kept for beam, _ in running[index].trail[-1]]  # N
        if len(kept) < len(running):
            step, running = step.of_images(kept), [running[index] for index in kept]
        tokens = np.array([word for image in running for _, word in image.trail[-1]], dtype=np.int64)  # (N,)
        states = output.states[:, rows]
    return [[image.path(outputs, rank) for rank in range(settings.num_captions)] for image in images]


class _ImageBeams:
    """The beams of one image, in plain Python: faster than arrays for a few numbers per step.

    Attributes:
        running: Log-probabilities of the K running hypotheses.
        words: Their tokens.
        trail: Per step, the parent beam and token of each running hypothesis.
        is_done: Whether no running hypothesis can beat the worst of K finished ones.
    """

    def __init__(self, settings: _Settings):
        self._settings = settings
        self.running = [0.0] + [float(NEVER)] * (settings.num_beams - 1)  # all beams start out identical
        self.words: list[list[int]] = [[] for _ in self.running]
        self.trail: list[list[tuple[int, int]]] = []
        self.is_done = False
        self._first_rows: list[int] = []  # per step, the row of the first beam
        self._scores: list[float] = []  # of finished hypotheses, best first
        self._ends: list[tuple[int, int, int]] = []  # step, parent beam and last token of each

    def advance(self, first_row: int, candidates: list[tuple[int, int]], log_probabilities: list[float]) -> None:
        """Processes the top 2 K candidates of a step, best first, as pairs of parent beam and token."""
        settings, num_beams = self._settings, self._settings.num_beams
        position = len(self._first_rows)
        self._first_rows.append(first_row)
        is_last = position + 1 == settings.max_words
        stops = [is_last or word == settings.end for _, word in candidates]
        unfinished = [rank for rank, stop in enumerate(stops) if not stop]
        chosen = (unfinished + [rank for rank, stop in enumerate(stops) if stop])[:num_beams]
        self.running = [log_probabilities[rank] + (float(NEVER) if stops[rank] else 0.0) for rank in chosen]
        self.trail.append([candidates[rank] for rank in chosen])
        self.words = [[*self.words[beam], word] for beam, word in self.trail[-1]]

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
        """A finished hypothesis, traced back from its last token."""
        position, beam, word = self._ends[rank]
        rows, tokens = [self._first_rows[position] + beam], [word]
        for earlier in reversed(range(position)):
            beam, word = self.trail[earlier][beam]
            rows.append(self._first_rows[earlier] + beam)
            tokens.append(word)
        return _Path(outputs, rows[::-1], tokens[::-1])


def _largest(values: np.ndarray, count: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and values of the `count` largest in each row, in descending order, ties by `index % vocab_size`."""
    indices, largest = zip(*_ranked(values, count, vocab_size), strict=True)
    return np.array(indices, dtype=np.int64), np.array(largest, dtype=values.dtype)


def _ranked(values: np.ndarray, count: int, vocab_size: int) -> Iterator[tuple[list[int], list[float]]]:
    """Like [`_largest`], but as lists, row by row.

    At least `count` values of a row reach the `count`-th largest of its block maxima, so few remain to be sorted: ten
    times as fast as argpartition().
    """
    num_blocks = values.shape[1] // BLOCK
    if not 0 < count <= num_blocks:
        bounds = np.full(len(values), -np.inf, dtype=values.dtype)
    else:
        maxima = values[:, : num_blocks * BLOCK].reshape(len(values), num_blocks, BLOCK).max(axis=2)
        bounds = np.partition(maxima, num_blocks - count, axis=1)[:, num_blocks - count] - TIE
    for row, bound in zip(values, bounds, strict=True):
        positions = (row >= bound).nonzero()[0]
        indices, candidates = positions.tolist(), row[positions].tolist()
        kept = _rank(candidates, [(index % vocab_size, index) for index in indices], count)
        yield [indices[each] for each in kept], [candidates[each] for each in kept]


def _rank(values: Sequence[float], keys: Sequence[Any], count: int) -> list[int]:
    """Indices of the `count` largest values in descending order, ties by key."""
    order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
    first = 0
    while first < min(count, len(order)):
        bound = values[order[first]] - float(TIE)
        stop = first + 1
        while stop < len(order) and values[order[stop]] >= bound:
            stop += 1
        if stop > first + 1:
            order[first:stop] = sorted(order[first:stop], key=keys.__getitem__)
        first = stop
    return order[:count]
