"""Labels photos: the teacher captions them, captions are cleaned, and unreadable photos are reported.

While a batch is captioned, the next photos are loaded.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UsageError, brief, one_line
from ..inference.prefetch import batches_of, run_ahead
from ..library.caption_file import photo_version
from ..model.image_loading_gru_captioner import load_image
from .cleaning import Cleaner
from .teacher import Draft, Teacher

if TYPE_CHECKING:
    from PIL.Image import Image

NUM_LOADERS = 2  # threads that read photos


@dataclass(frozen=True)
class Labelled:
    """A photo with its captions.

    Args:
        photo: Its path or URL.
        captions: The teacher's captions, cleaned; empty if nothing is left.
        num_cut: Number of captions truncated at the maximum length.
        version: Size and modification time of the file.
        problem: Why there is no caption; empty if there is one.
    """

    photo: str
    captions: tuple[str, ...] = ()
    num_cut: int = 0
    version: str | None = None
    problem: str = ""


@dataclass(frozen=True)
class _Loaded:
    photo: str
    version: str | None
    image: "Image | None" = None
    problem: str = ""


def label_photos(
    teacher: Teacher, photos: Sequence[str], cleaner: Cleaner, *, num_captions: int = 1, batch_size: int = 8
) -> Iterator[Labelled]:
    """Yields each photo in order.

    Args:
        teacher: The teacher.
        photos: Paths and URLs.
        cleaner: Cleans the captions.
        num_captions: Captions per photo: one by beam search, several by sampling.
        batch_size: Photos per batch; reduced if out of memory.

    Raises:
        UsageError: Out of memory even for a single photo.
    """

    def load(photo: str) -> _Loaded:
        version = photo_version(photo)
        try:
            photo.encode()
            image = load_image(photo)
        except UnicodeEncodeError:
            problem = _one_line(f"{photo}: its name is not valid UTF-8, so a caption file can't contain it: rename it")
            return _Loaded(photo, version, problem=problem)
        except (OSError, ValueError) as error:
            return _Loaded(photo, version, problem=one_line(error))
        image.thumbnail((teacher.side, teacher.side), reducing_gap=3.0)
        return _Loaded(photo, version, image)

    with ThreadPoolExecutor(NUM_LOADERS, "load") as loaders:
        for batch in batches_of(run_ahead(loaders, load, photos, 2 * batch_size), batch_size):
            readable = [each for each in batch if each.image is not None]
            results = iter(_write(teacher, readable, num_captions))
            for each in batch:
                if each.image is None:
                    yield Labelled(each.photo, problem=each.problem)
                    continue
                drafts = next(results)
                captions = tuple(caption for draft in drafts if (caption := cleaner(draft.text)))
                no_caption = _one_line(f"{each.photo}: the teacher wrote no usable caption ({_shown(drafts)})")
                problem = "" if captions else no_caption
                yield Labelled(each.photo, captions, sum(draft.is_cut for draft in drafts), each.version, problem)


def _write(teacher: Teacher, photos: Sequence[_Loaded], num_captions: int) -> list[list[Draft]]:
    import torch

    if not photos:
        return []
    try:
        return teacher.write([each.image for each in photos], [each.photo for each in photos], num_captions)  # type: ignore[misc]
    except torch.OutOfMemoryError as error:
        if len(photos) == 1:
            raise UsageError(
                f"memory doesn't suffice for one photo ({brief(error)}). Take a smaller teacher, or --device cpu."
            ) from error
    torch.cuda.empty_cache()
    half = len(photos) // 2
    return _write(teacher, photos[:half], num_captions) + _write(teacher, photos[half:], num_captions)


def _one_line(problem: str) -> str:
    return one_line(ValueError(problem))  # a name may contain terminal control characters


def _shown(drafts: Sequence[Draft]) -> str:
    return ", ".join(repr(draft.text[:60]) for draft in drafts[:3])
