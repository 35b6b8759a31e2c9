"""Captions for many callers at once: photos that wait share the next forward, and a full house says so.

One thread owns the model. While it works, callers queue; then it takes all that wait and want the same decoding, up to
a batch, so nobody waits for company and company makes everyone quicker.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers.generation.streamers import BaseStreamer

from ..captioning import Caption, Captioner

NUM_RIVALS = 5


class BusyError(RuntimeError):
    """More callers wait than may; its text is for them."""


@dataclass(frozen=True)
class Decoding:
    """How captions are written.

    Attributes:
        strategy: `"beam"`, `"greedy"` or `"sample"`.
        num_captions: How many of each photo; greedy search writes one.
        num_beams: Of beam search.
        temperature, top_p: Of sampling.
        length_penalty: Of beam search; above 0 long captions win.
        max_words: At the most.
        no_repeat_ngram: N-grams of this length come once in a caption; 0 for no such rule.
    """

    strategy: str = "beam"
    num_captions: int = 3
    num_beams: int = 5
    temperature: float = 1.0
    top_p: float = 1.0
    length_penalty: float = 0.9
    max_words: int = 24
    no_repeat_ngram: int = 0

    def generation(self) -> dict[str, Any]:
        """Arguments of generate()."""
        settings: dict[str, Any] = {"max_new_tokens": self.max_words, "no_repeat_ngram_size": self.no_repeat_ngram}
        if self.strategy == "beam":
            beams = max(self.num_beams, self.num_captions)
            return settings | {"num_beams": beams, "do_sample": False, "length_penalty": self.length_penalty}
        settings |= {"num_beams": 1, "length_penalty": 1.0}
        if self.strategy == "sample":
            return settings | {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return settings | {"do_sample": False}

    @property
    def captions_written(self) -> int:
        return 1 if self.strategy == "greedy" else self.num_captions


@dataclass(frozen=True)
class Captioned:
    """What a photo got.

    Attributes:
        captions: The best first.
        encoder_ms, decoder_ms: Milliseconds of the forwards that the photo was in.
        batch: Photos in them.
    """

    captions: list[Caption]
    encoder_ms: float
    decoder_ms: float
    batch: int


@dataclass
class _Wish:
    image: Image.Image
    decoding: Decoding
    answer: Future


class CaptionService:
    """Captions photos, from any number of threads.

    Args:
        captioner: Writes the captions.
        max_batch: Photos in a forward.
        max_waiting: Callers that may wait; one more is told that the house is full.
    """

    def __init__(self, captioner: Captioner, max_batch: int = 16, max_waiting: int = 64):
        self.captioner = captioner
        self.max_batch = max_batch
        self._waiting: queue.Queue[_Wish | None] = queue.Queue(max_waiting)
        self._left_over: list[_Wish] = []
        self._model = threading.Lock()  # streams work beside the thread of the batches
        self._thread = threading.Thread(target=self._work, name="captions", daemon=True)
        self._thread.start()

    def __call__(self, image: Image.Image, decoding: Decoding = Decoding()) -> Captioned:
        """Captions one photo; waits for it.

        Raises:
            BusyError: Too many wait already.
        """
        wish = _Wish(image, decoding, Future())
        try:
            self._waiting.put_nowait(wish)
        except queue.Full:
            raise BusyError("Too many people are captioning photos right now. Please try again in a moment.") from None
        return wish.answer.result()

    def stream(self, image: Image.Image, decoding: Decoding) -> Iterator[str]:
        """The caption as it grows, word by word; greedy or sampled, since a search knows its words only at the end."""
        words: queue.Queue[str | BaseException | None] = queue.Queue()
        settings = {**decoding.generation(), "num_beams": 1, "length_penalty": 1.0}

        def write() -> None:
            try:
                with self._model, torch.inference_mode():
                    encoded = self.captioner.encode([image])
                    streamer = _Words(lambda tokens: words.put(self.captioner.processor.decode(tokens)))
                    self.captioner.model.generate(encoder_outputs=encoded, streamer=streamer, **settings)
                words.put(None)
            except BaseException as error:
                words.put(error)

        threading.Thread(target=write, name="stream", daemon=True).start()
        last = ""
        while (text := words.get()) is not None:
            if isinstance(text, BaseException):
                raise text
            if text != last:
                last = text
                yield text

    def close(self) -> None:
        """Ends when all who wait have their captions."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            try:
                answers: Sequence[Captioned | Exception] = self._caption(batch)
            except Exception:
                answers = [self._alone(wish) for wish in batch]  # one photo must not spoil the others' captions
            for wish, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Exception):
                    wish.answer.set_exception(answer)
                else:
                    wish.answer.set_result(answer)

    def _next_batch(self) -> list[_Wish] | None:
        """Those who have waited longest, and others who want the same decoding; None when the service closes."""
        first = self._left_over.pop(0) if self._left_over else self._waiting.get()
        if first is None:
            return None
        batch, others = [first], []
        for wish in self._left_over + list(self._all_waiting()):
            if wish is None:
                self._waiting.put(None)
            elif len(batch) < self.max_batch and wish.decoding == first.decoding:
                batch.append(wish)
            else:
                others.append(wish)
        self._left_over = others
        return batch

    def _all_waiting(self) -> Iterator[_Wish | None]:
        while len(self._left_over) < self.max_batch:
            try:
                yield self._waiting.get_nowait()
            except queue.Empty:
                return

    def _caption(self, batch: Sequence[_Wish]) -> list[Captioned]:
        decoding = batch[0].decoding
        with self._model:
            start = time.perf_counter()
            encoded = self.captioner.encode([wish.image for wish in batch])
            middle = time.perf_counter()
            captions = self.captioner.decode(
                encoded, decoding.captions_written, num_rivals=NUM_RIVALS, **decoding.generation()
            )
            end = time.perf_counter()
        times = (1000 * (middle - start), 1000 * (end - middle), len(batch))
        return [Captioned(of_image, *times) for of_image in captions]

    def _alone(self, wish: _Wish) -> Captioned | Exception:
        try:
            return self._caption([wish])[0]
        except Exception as error:
            return error


class _Words(BaseStreamer):
    """Tells the tokens so far, each time there is one more."""

    def __init__(self, tell: Callable[[list[int]], None]):
        self.tell = tell
        self.tokens: list[int] | None = None  # None until the start token has come

    def put(self, value: torch.Tensor) -> None:
        if self.tokens is None:
            self.tokens = []
        else:
            self.tokens += value.flatten().tolist()
            self.tell(self.tokens)

    def end(self) -> None:
        pass
