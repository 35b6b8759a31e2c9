"""Captions images for many callers at once by dynamic batching; requests beyond the queue limit are rejected.

One thread runs each model. While it works, requests queue up; then it takes all waiting requests with the same decoding
settings, up to a batch. No request waits for others to arrive, and batching makes all of them faster.
"""

import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, fields
from typing import Any

from PIL import Image

from ..captioner import Caption, Captioner
from ..inference.backend import PYTORCH
from ..tokenization import SPECIAL_TOKENS
from ..untrusted_images import RefusedError

NUM_ALTERNATIVES = 5  # words offered in place of each word
NO_WORDS = {text for name, text in SPECIAL_TOKENS.items() if name != "eos_token"}  # may be among a word's alternatives
NUM_DECODERS = 2  # images decoded at the same time, however many callers there are
MAX_PIXELS = 2_000_000  # pixels of a waiting image; only encoders without a fixed input size need it
STRATEGIES = ("beam", "greedy", "sample")


def has_pytorch() -> bool:
    """Whether PyTorch is installed, which sampling needs."""
    return importlib.util.find_spec(PYTORCH) is not None


class BusyError(RuntimeError):
    """The queue limit is exceeded; the message is for the caller."""


class ClosedError(RuntimeError):
    """The service was closed, to make room for another checkpoint; [`ServicePool.caption`] starts it again."""


def _bounded(default, lowest, highest) -> Any:
    return field(default=default, metadata={"bounds": (lowest, highest)})


@dataclass(frozen=True)
class Decoding:
    """Decoding settings; the defaults are those of the shipped checkpoint.

    Attributes:
        strategy: `"beam"`, `"greedy"` or `"sample"`.
        num_captions: Captions per image; greedy search gives one.
        num_beams: For beam search.
        temperature, top_p: For sampling.
        length_penalty: For beam search; above 0 favors long captions.
        max_words: Maximum length.
        no_repeat_ngram: N-grams of this length occur at most once in a caption; 0 for no limit.

    Raises:
        RefusedError: A setting is out of its bounds.
    """

    strategy: str = "beam"
    num_captions: int = _bounded(3, 1, 5)
    num_beams: int = _bounded(5, 1, 10)
    temperature: float = _bounded(1.0, 0.1, 2.0)
    top_p: float = _bounded(1.0, 0.1, 1.0)
    length_penalty: float = _bounded(0.9, -2.0, 2.0)
    max_words: int = _bounded(24, 3, 40)
    no_repeat_ngram: int = _bounded(2, 0, 4)

    def __post_init__(self):
        if self.strategy not in STRATEGIES:
            raise RefusedError(f"The strategy must be one of {', '.join(STRATEGIES)}.")
        for each in fields(self):
            lowest, highest = each.metadata.get("bounds", (None, None))
            value = getattr(self, each.name)
            if lowest is None:
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and lowest <= value <= highest
            is_whole = isinstance(lowest, int)
            if not is_number or (is_whole and value != int(value)):
                kind = "a whole number" if is_whole else "a number"
                raise RefusedError(f"{each.name} must be {kind} from {lowest} to {highest}.")
            # JavaScript does not distinguish 3 from 3.0.
            object.__setattr__(self, each.name, int(value) if is_whole else float(value))

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
        """Number of captions that are generated per image."""
        return 1 if self.strategy == "greedy" else self.num_captions


@dataclass(frozen=True)
class Captioned:
    """The captions of an image.

    Attributes:
        captions: Captions, best first.
        encoder_ms, decoder_ms: Time in milliseconds of the forward passes of its batch.
        batch: Number of images in the batch.
    """

    captions: list[Caption]
    encoder_ms: float
    decoder_ms: float
    batch: int


@dataclass
class _Request:
    image: Image.Image
    decoding: Decoding
    answer: Future


class CaptionService:
    """Captions images, called from any number of threads.

    Args:
        captioner: Generates the captions.
        max_batch: Maximum images in a forward pass.
        max_waiting: Maximum waiting requests; further ones are rejected.
    """

    def __init__(self, captioner: Captioner, max_batch: int = 16, max_waiting: int = 64):
        self.captioner = captioner
        self.max_batch = max_batch
        self._waiting: queue.Queue[_Request | None] = queue.Queue(max_waiting)
        self._postponed: list[_Request] = []
        self._is_closed = False
        self._queue_lock = threading.Lock()  # no request is queued after closing
        self._model_lock = threading.Lock()  # held by streams and by the batching thread
        self._thread = threading.Thread(target=self._run, name="captions", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Number of requests waiting for the model."""
        return self._waiting.qsize() + len(self._postponed)

    @property
    def is_running(self) -> bool:
        """Whether its thread still runs; False some time after [`close`] was called."""
        return self._thread.is_alive()

    def load(self, content: bytes) -> Image.Image:
        """Decodes an image file, scaled down to the encoder's input size.

        Raises:
            ValueError: Not an image, or a damaged one.
        """
        image = self.captioner.load_image(content)
        if image.width * image.height > MAX_PIXELS:
            shrink = (MAX_PIXELS / image.width / image.height) ** 0.5
            image = image.resize((max(1, int(image.width * shrink)), max(1, int(image.height * shrink))))
        return image

    def __call__(self, image: Image.Image, decoding: Decoding = Decoding()) -> Captioned:
        """Captions one image; blocks until done.

        Raises:
            BusyError: The queue limit is exceeded.
            ClosedError: The service was closed.
            RefusedError: The decoding settings need PyTorch, which is not installed.
        """
        self._check_decoding(decoding)
        request = _Request(image, decoding, Future())
        with self._queue_lock:
            if self._is_closed:
                raise ClosedError("This service was closed: take it from its ServicePool again.")
            if self._waiting.full():
                raise BusyError("Too many people are captioning photos right now. Please try again in a moment.")
            self._waiting.put_nowait(request)
        return request.answer.result()

    def stream(self, image: Image.Image, decoding: Decoding) -> Iterator[str]:
        """Yields the growing caption word by word; greedy or sampled, since beam search chooses words only at the end.

        It needs no queue, so it also works after the service was closed.

        Raises:
            RefusedError: The decoding settings need PyTorch, which is not installed.
        """
        self._check_decoding(decoding)
        words: queue.Queue[str | BaseException | None] = queue.Queue()
        settings = {**decoding.generation(), "num_beams": 1, "length_penalty": 1.0}

        def generate() -> None:
            try:
                with self._model_lock:
                    self.captioner.decode(self.captioner.encode([image]), report=words.put, **settings)
                words.put(None)
            except BaseException as error:
                words.put(error)

        threading.Thread(target=generate, name="stream", daemon=True).start()
        last = ""
        while (text := words.get()) is not None:
            if isinstance(text, BaseException):
                raise text
            if text != last:
                last = text
                yield text

    def close(self) -> None:
        """Stops after all waiting requests have been served."""
        with self._queue_lock:
            self._is_closed = True
        self._waiting.put(None)
        self._thread.join()

    def _check_decoding(self, decoding: Decoding) -> None:
        if has_pytorch():
            return
        if PYTORCH in self.captioner.backend_for(decoding.captions_written, **decoding.generation()):
            what = "Sampling needs" if decoding.strategy == "sample" else "The settings of this checkpoint need"
            raise RefusedError(f"{what} PyTorch, which is not installed here: choose beam search or greedy search.")

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            try:
                answers: Sequence[Captioned | Exception] = self._caption(batch)
            except Exception:
                answers = [self._caption_alone(request) for request in batch]  # one bad image must not fail all
            for request, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Exception):
                    request.answer.set_exception(answer)
                else:
                    request.answer.set_result(answer)

    def _next_batch(self) -> list[_Request] | None:
        """The oldest request and others with the same decoding settings; None when the service closes."""
        first = self._postponed.pop(0) if self._postponed else self._waiting.get()
        if first is None:
            return None
        batch, others = [first], []
        for request in self._postponed + list(self._take_waiting()):
            if request is None:
                self._waiting.put(None)
            elif len(batch) < self.max_batch and request.decoding == first.decoding:
                batch.append(request)
            else:
                others.append(request)
        self._postponed = others
        return batch

    def _take_waiting(self) -> Iterator[_Request | None]:
        while len(self._postponed) < self.max_batch:
            try:
                yield self._waiting.get_nowait()
            except queue.Empty:
                return

    def _caption(self, batch: Sequence[_Request]) -> list[Captioned]:
        decoding = batch[0].decoding
        with self._model_lock:
            start = time.perf_counter()
            encoded = self.captioner.encode([request.image for request in batch])
            encoded_at = time.perf_counter()
            captions = self.captioner.decode(
                encoded,
                decoding.captions_written,
                num_alternatives=NUM_ALTERNATIVES + len(NO_WORDS),
                **decoding.generation(),
            )
            end = time.perf_counter()
        times = (1000 * (encoded_at - start), 1000 * (end - encoded_at), len(batch))
        return [Captioned(of_image, *times) for of_image in captions]

    def _caption_alone(self, request: _Request) -> Captioned | Exception:
        try:
            return self._caption([request])[0]
        except Exception as error:
            return error


class ServicePool:
    """Services by checkpoint name, each started on first use, by the caller that asks for it first.

    Args:
        names: Allowed names; the first is the default.
        load: Name -> captioner; never called by two threads at once with the same name.
        any_name: Whether other names are allowed too: Hub ids, folders of this machine.
        capacity: Maximum number of services; the least recently used one is closed after its callers are served.
        limits: Limits of each [`CaptionService`].
    """

    def __init__(
        self,
        names: Sequence[str],
        load: Callable[[str], Captioner],
        *,
        any_name: bool = False,
        capacity: int = 3,
        **limits: int,
    ):
        self.names = tuple(names)
        self.load = load
        self.any_name = any_name
        self.capacity = max(capacity, 1)
        self.limits = limits
        self._services: dict[str, CaptionService] = {}  # the most recently used is last
        self._loading: dict[str, Future[CaptionService]] = {}
        self._is_closed = False
        self._lock = threading.Lock()  # not held during a load, which may be a download

    def __getitem__(self, name: str) -> CaptionService:
        """The service of a checkpoint, started if necessary.

        Raises:
            RefusedError: There is no such checkpoint, or it is not allowed.
        """
        if not isinstance(name, str):  # a program may send anything
            raise RefusedError("There is no such checkpoint here.")
        with self._lock:
            if self._is_closed:
                raise RefusedError("The page is shutting down.")
            service = self._services.pop(name, None)
            if service is not None:
                self._services[name] = service
                return service
            if name not in self.names and not self.any_name:
                raise RefusedError("There is no such checkpoint here.")
            is_first = name not in self._loading
            loading = self._loading.setdefault(name, Future())
        if is_first:
            self._load(name, loading)
        try:
            return loading.result()
        except (OSError, ValueError) as error:
            raise RefusedError(" ".join(str(error).split())) from error

    def _load(self, name: str, loading: Future[CaptionService]) -> None:
        """Starts a service and makes it, or the error, the result of `loading`."""
        try:
            service = CaptionService(self.load(name), **self.limits)
        except BaseException as error:
            with self._lock:
                del self._loading[name]
            loading.set_exception(error)
            return
        with self._lock:
            del self._loading[name]
            self._services[name] = service
            if len(self._services) > self.capacity:
                oldest = self._services.pop(next(iter(self._services)))
                threading.Thread(target=oldest.close, daemon=True).start()
        loading.set_result(service)

    def caption(self, name: str, image: Image.Image, decoding: Decoding) -> Captioned:
        """Captions one image with a checkpoint, started again if it was closed since the image was loaded.

        Raises:
            BusyError: Too many requests wait for this checkpoint.
            RefusedError: As in `pool[name]` and [`CaptionService`].
        """
        while True:
            try:
                return self[name](image, decoding)
            except ClosedError:
                continue  # others used more checkpoints than the pool holds

    def close(self) -> None:
        """Stops all services after their waiting requests have been served."""
        with self._lock:
            self._is_closed = True
            loading = list(self._loading.values())
        wait(loading)
        with self._lock:
            services, self._services = self._services, {}
        for service in services.values():
            service.close()
