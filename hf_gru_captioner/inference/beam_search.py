"""Greedy and beam search in NumPy, over any decode step: the captions of transformers' generate(), faster.

A word through generate() costs more of its loop than of a model this small. Here a word costs one call of the step and
a few array operations, whatever runs the step: PyTorch, ONNX Runtime or OpenVINO. What a caption's words looked at and
what they were chosen from is kept by the step and read back at the end, so nothing is computed twice.

The beam search is that of transformers 5.23 with `early_stopping=False`, its default: 2 K candidates a step, the best K
unfinished go on, a caption's score is its log-probability divided by its length to the power of the length penalty, and
an image is done when the best that goes on, divided so, is no better than its worst finished caption.

Candidates that differ by no more than `TIE` count as equal, and the smaller token id comes first: else
the last bits of a float32, and so the processor, the batch and the runtime, would decide. Of finished captions that are
equal so, the one that was finished first comes first.

Letters in shape comments:
    B images    K beams    N rows of the step, image by image (N = B K)    P regions
    T words     H hidden   V vocabulary
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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
    """One word further: the last words `(N,)` int64 and the states before them `(2, N, H)` -> [`StepOutput`]."""

    def __call__(self, tokens: np.ndarray, states: np.ndarray) -> StepOutput: ...


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
        log_probabilities = np.stack([output.log_probabilities[row] for output, row in steps])  # (T, V)
        attention = [output.attention[row] for output, row in steps if output.attention is not None]
        alternatives, of_alternatives = _largest(log_probabilities, num_alternatives, log_probabilities.shape[1])
        return Hypothesis(
            tokens=np.array(self.tokens),
            log_probabilities=log_probabilities[np.arange(len(self.tokens)), self.tokens],
            attention=np.stack(attention) if attention else None,  # (T, P)
            alternatives=alternatives,
            alternative_log_probabilities=of_alternatives,
        )


def _greedy(
    step: Step, states: np.ndarray, settings: _Settings, report: Callable[[list[int]], None] | None = None
) -> list[_Path]:
    num_images, max_words = states.shape[1], settings.max_words
    tokens = np.full(num_images, settings.start, dtype=np.int64)
    lengths = np.full(num_images, max_words)
    outputs: list[StepOutput] = []
    words: list[np.ndarray] = []
    for position in range(max_words):
        output = step(tokens, states)
        allowed = _without(output.log_probabilities, settings.suppressed)
        is_best = allowed >= allowed.max(axis=1, keepdims=True) - TIE  # (B, V)
        tokens, states = is_best.argmax(axis=1), output.states  # (B,), (2, B, H)
        outputs.append(output)
        words.append(tokens)
        if report is not None:
            report([int(each[0]) for each in words])
        lengths[(tokens == settings.end) & (lengths == max_words)] = position + 1
        if (lengths <= position + 1).all():
            break
    table = np.array(words)  # (T, B)
    return [
        _Path(outputs, [image] * length, table[:length, image].tolist())
        for image, length in enumerate(lengths.tolist())
    ]


def _beam(step: Step, states: np.ndarray, settings: _Settings) -> list[list[_Path]]:
    num_images, num_beams = states.shape[1], settings.num_beams
    images = np.arange(num_images)[:, None]  # (B, 1)
    states = states.repeat(num_beams, axis=1)  # (2, N, H)
    tokens = np.full(num_images * num_beams, settings.start, dtype=np.int64)  # (N,)
    running = np.full((num_images, num_beams), NEVER)  # (B, K), log-probabilities of the captions that go on
    running[:, 0] = 0  # at first all beams are one
    finished = _Finished(num_images, num_beams)
    outputs: list[StepOutput] = []
    trail: list[tuple[np.ndarray, np.ndarray]] = []  # of each step: the beam that each one that goes on came from, word

    for position in range(settings.max_words):
        output = step(tokens, states)
        outputs.append(output)
        allowed = _without(output.log_probabilities, settings.suppressed)  # (N, V)
        totals = allowed.reshape(num_images, num_beams, -1) + running[:, :, None]  # (B, K, V)
        vocab_size = totals.shape[-1]
        best, log_probabilities = _largest(totals.reshape(num_images, -1), 2 * num_beams, vocab_size)  # (B, 2 K)
        beams, words = best // vocab_size, best % vocab_size  # (B, 2 K)
        stops = (words == settings.end) | (position + 1 == settings.max_words)  # (B, 2 K)

        going_on = log_probabilities + np.where(stops, NEVER, np.float32(0))
        chosen = stops.argsort(axis=1, kind="stable")[:, :num_beams]  # (B, K), the best that go on
        running = going_on[images, chosen]
        trail.append((beams[images, chosen], words[images, chosen]))

        divisor = np.float32((position + 1) ** settings.length_penalty)
        new_ends = np.stack((np.full_like(beams, position), beams, words), axis=-1)  # (B, 2 K, 3)
        finished.add(log_probabilities / divisor, new_ends, stops, running[:, :1] / divisor)
        if not finished.can_improve.any() or stops.all():
            break
        rows = (images * num_beams + trail[-1][0]).ravel()  # (N,)
        tokens, states = trail[-1][1].ravel(), output.states[:, rows]

    return [
        [_follow(outputs, trail, image, finished.ends[image, rank], num_beams) for rank in range(settings.num_captions)]
        for image in range(num_images)
    ]


class _Finished:
    """The best finished captions of each image so far.

    Attributes:
        ends: Step, beam before it and word that finished each, the best first, `(B, K, 3)`.
        can_improve: Whether a caption that goes on may still become better than the worst of them, `(B, 1)`.
    """

    def __init__(self, num_images: int, num_beams: int):
        self.ends = np.zeros((num_images, num_beams, 3), dtype=np.int64)
        self.can_improve = np.ones((num_images, 1), dtype=bool)
        self._scores = np.full((num_images, num_beams), NEVER)
        self._is_finished = np.zeros((num_images, num_beams), dtype=bool)
        self._images = np.arange(num_images)[:, None]  # (B, 1)

    def add(self, scores: np.ndarray, ends: np.ndarray, stops: np.ndarray, best_running: np.ndarray) -> None:
        """Takes in the candidates of a step.

        Args:
            scores: Of its 2 K best candidates, `(B, 2 K)`.
            ends: As in the attribute, `(B, 2 K, 3)`.
            stops: Which of them are finished, `(B, 2 K)`.
            best_running: Score of the best caption that goes on, if it ended here, `(B, 1)`.
        """
        num_beams = self._scores.shape[1]
        may_finish = stops & self.can_improve
        may_finish[:, num_beams:] = False
        all_scores = np.concatenate((self._scores, np.where(may_finish, scores, NEVER)), axis=1)  # (B, 3 K)
        kept, _ = _largest(all_scores, num_beams, all_scores.shape[1])
        self._scores = all_scores[self._images, kept]
        self.ends = np.concatenate((self.ends, ends), axis=1)[self._images, kept]
        self._is_finished = np.concatenate((self._is_finished, may_finish), axis=1)[self._images, kept]
        worst = np.where(self._is_finished, self._scores.min(axis=1, keepdims=True), NEVER)  # (B, K)
        self.can_improve &= (best_running > worst).any(axis=1, keepdims=True)


def _follow(
    outputs: Sequence[StepOutput],
    trail: Sequence[tuple[np.ndarray, np.ndarray]],
    image: int,
    end: np.ndarray,
    num_beams: int,
) -> _Path:
    """Reads a finished caption back from its last word."""
    position, beam, word = map(int, end)
    rows, tokens = [image * num_beams + beam], [word]
    for came_from, words in reversed(trail[:position]):
        tokens.append(int(words[image, beam]))
        beam = int(came_from[image, beam])
        rows.append(image * num_beams + beam)
    return _Path(outputs, rows[::-1], tokens[::-1])


def _without(log_probabilities: np.ndarray, suppressed: Sequence[int]) -> np.ndarray:
    if not suppressed:
        return log_probabilities
    allowed = log_probabilities.copy()  # the step's own are kept, for the alternatives
    allowed[:, suppressed] = -np.inf
    return allowed


def _largest(values: np.ndarray, count: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and values of the `count` largest of each row, the largest first, equal ones by `index % vocab_size`.

    At least `count` values of a row are no smaller than the `count` largest maxima of its blocks, so few are left to be
    sorted: a tenth of the time of argpartition().
    """
    num_blocks = values.shape[1] // BLOCK
    if count == 0:
        indices = np.zeros((len(values), 0), dtype=np.int64)
    elif num_blocks < count:
        indices = np.stack([_largest_above(row, -np.inf, count, vocab_size) for row in values])
    else:
        maxima = values[:, : num_blocks * BLOCK].reshape(len(values), num_blocks, BLOCK).max(axis=2)
        bounds = np.partition(maxima, num_blocks - count, axis=1)[:, num_blocks - count]
        rows = zip(values, bounds, strict=True)
        indices = np.stack([_largest_above(row, bound - TIE, count, vocab_size) for row, bound in rows])
    return indices, np.take_along_axis(values, indices, axis=1)


def _largest_above(row: np.ndarray, bound: float, count: int, vocab_size: int) -> np.ndarray:
    candidates = np.flatnonzero(row >= bound)
    candidates = candidates[np.argsort(-row[candidates], kind="stable")]
    values = row[candidates]  # the largest first
    first = 0
    if not (values[: count + 1][1:] >= values[:count][: len(values) - 1] - TIE).any():
        first = count  # none are equal
    while first < min(count, len(values)):
        behind = first + int(np.count_nonzero(values[first:] >= values[first] - TIE))
        equal = candidates[first:behind]
        candidates[first:behind] = equal[np.lexsort((equal, equal % vocab_size))]
        first = behind
    return candidates[:count]
