"""Prefetching: while some images are captioned, the next are encoded and the ones after them loaded.

The queues between the stages are bounded, so memory does not grow with the number of images. Threads suffice: Pillow
and the runtimes release the GIL.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from PIL import Image

    from ..captioner import Caption, Captioner
    from ..model.image_loading_gru_captioner import ImageSource

Item = TypeVar("Item")
Result = TypeVar("Result")


def caption_all(
    captioner: "Captioner",
    sources: "Iterable[ImageSource]",
    *,
    num_captions: int = 1,
    batch_size: int = 16,
    num_loaders: int = 2,
    **generation: Any,
) -> "Iterator[list[Caption] | Exception]":
    """Yields, in order, the captions of each image or the error that it failed with.

    Args:
        captioner: The captioner.
        sources: Images of any kind that `load_image` takes, consumed lazily.
        num_captions: Captions per image, best first.
        batch_size: Images per batch.
        num_loaders: Threads that load images.
        generation: Generation settings.
    """

    def load(source: "ImageSource") -> "Image.Image | Exception":
        try:
            return captioner.load_image(source)
        except (OSError, TypeError, ValueError) as error:
            return error

    def encode(batch: "list[Image.Image | Exception]") -> "tuple[list[Image.Image | Exception], Any]":
        images = [image for image in batch if not isinstance(image, Exception)]
        return batch, captioner.encode(images) if images else None

    with ThreadPoolExecutor(num_loaders, "load") as loaders, ThreadPoolExecutor(1, "encode") as encoder:
        loaded = run_ahead(loaders, load, sources, 2 * batch_size)
        for batch, encoded in run_ahead(encoder, encode, batches_of(loaded, batch_size), 1):
            written = iter(captioner.decode(encoded, num_captions, **generation) if encoded is not None else [])
            for image in batch:
                yield image if isinstance(image, Exception) else next(written)


def run_ahead(
    executor: Executor, work: Callable[[Item], Result], items: Iterable[Item], depth: int
) -> Iterator[Result]:
    """Results of the items in order, computed up to `depth` items ahead."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(work, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # the caller may stop early
        for future in waiting:
            future.cancel()


def batches_of(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` consecutive items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
