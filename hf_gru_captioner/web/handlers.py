"""What the page's events do: load an image within limits, caption it, and return what the components show."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from PIL import ExifTags, Image

from ..captioner import Caption
from ..untrusted_images import ADDRESSES, Limits, RefusedError, fetch_image, open_image, photo_of
from .answers import answer_of, as_sentences, caption_as_json, jpeg_of, shown_image, word_probability
from .batch import Sent, caption_all, images_of, saved
from .messages import reviewed, sent_files
from .service import NUM_DECODERS, BusyError, CaptionService, Decoding, ServicePool
from .uploads import uploads

MAX_FETCHES = 8  # addresses that are fetched at the same time; each may be 20 MB
SHOWN_SIDE = 1024  # pixels of the longer side of the image that goes back to the page
THUMBNAIL_SIDE = 320  # pixels of the longer side of an image in the review grid
REPORT_SECONDS = 0.5  # between two reports of captions that are ready
API_FILES = "gradio_api/file="  # address of an upload, relative to the page
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF's orientations of images that are turned by a quarter

LoadImage = Callable[..., Image.Image]
Read = Callable[[], bytes]


class Handlers:
    """The functions behind the page's buttons and inputs; each may be called from any number of threads.

    Args:
        pool: Captions images.
        load_image: Makes an image upright and RGB.
        limits: What visitors may send.
        train_from: As in `page.build_page`.
    """

    def __init__(
        self,
        pool: ServicePool,
        load_image: LoadImage,
        limits: Limits,
        train_from: Callable[[str], str | None] = lambda name: None,
    ):
        self.pool = pool
        self.load_image = load_image
        self.limits = limits
        self.train_from = train_from
        # Threads of their own instead of a semaphore: C's allocator keeps what each thread that ever decoded needed.
        self._decoders = ThreadPoolExecutor(NUM_DECODERS, "decode")
        self._fetches = threading.Semaphore(MAX_FETCHES)

    def load(self, service: CaptionService, read: Read) -> Image.Image:
        """An image for the encoder; files are read and decoded by a few threads, however many callers wait."""

        def work() -> Image.Image:
            content = photo_of(read(), self.limits)
            open_image(content, self.limits)
            return service.load(content)

        with _damage_refused():
            return self._decoders.submit(work).result()

    def load_to_show(self, service: CaptionService, read: Read, side: int) -> tuple[Image.Image, Image.Image]:
        """An image for the encoder, and one to show; it is decoded twice rather than kept whole while it waits."""

        def work() -> tuple[Image.Image, Image.Image]:
            content = photo_of(read(), self.limits)
            picture = open_image(content, self.limits)
            return service.load(content), self.load_image(content, size=shown_size(picture, side))

        with _damage_refused():
            return self._decoders.submit(work).result()

    @contextmanager
    def fetched(self, address: str) -> Iterator[Read]:
        """The image at an address, kept only within the block.

        Raises:
            BusyError: Too many are being fetched.
            RefusedError: As in `fetch_image`.
        """
        if not self._fetches.acquire(blocking=False):
            raise BusyError("Too many addresses are being fetched right now. Please try again in a moment.")
        try:
            content = fetch_image(address, self.limits)
            yield lambda: content
        finally:
            self._fetches.release()

    def caption_again(self, path: str | None, address: str, checkpoint: str, *settings) -> tuple:
        """What a new photo or new settings start: the viewer's answer, and what becomes of the photo's input.

        An address counts only where there is no photo: it may be left from before.
        """
        if path is None and not _is_address(address):
            return gr.skip(), gr.skip()
        return self.caption_input(path, address if path is None else "", checkpoint, *settings)

    def caption_input(self, path: str | None, address: str, checkpoint: str, *settings) -> tuple:
        """Caption the image at the address if one is given, else the uploaded one.

        Returns:
            The viewer's answer: as /caption, in JSON, with the image as the page shows it; or why there is none. And
            what becomes of the photo's input: an address takes its place, and it forgets a file that was refused.
        """
        answer, kept = self._captioned(path, (address or "").strip(), checkpoint, *settings)
        return json.dumps(answer), kept

    def compare(self, path: str | None, *settings) -> tuple:
        """Caption an uploaded image with two halves of settings; the third is what becomes of the photo's input."""
        if path is None:
            return gr.skip(), gr.skip(), gr.skip()
        half = len(settings) // 2
        sides, answers, kept = {"Left": settings[:half], "Right": settings[half:]}, [], gr.skip()
        for side, (checkpoint, *others) in sides.items():
            answer, kept = self._captioned(path, "", checkpoint, *others)
            if "captions" in answer:
                answer["title"] = f"{side}: {self._described(checkpoint, Decoding(*others))}"
            answers.append(answer)
        left, right = ([each["caption"] for each in answer.get("captions", ())][:1] for answer in answers)
        if left and left == right:
            answers[1]["title"] += " (the same caption)"
        return *map(json.dumps, answers), kept

    def caption_for_review(self, sent: Any, checkpoint: str, *settings) -> Iterator[str]:
        """Caption what the review grid sent; yields all rows so far in JSON, at the end with what was left out.

        `weights` is the option that names the checkpoint in the training command; empty for the shipped one.
        """
        with as_sentences():
            files = sent_files(sent, uploads())
            service, decoding = self.pool[checkpoint], Decoding(*settings)
        train_from = self.train_from(checkpoint)
        weights = f" --model.checkpoint {train_from}" if train_from else ""
        total = None if any(file.path.suffix.lower() == ".zip" for file in files) else len(files)

        def caption(content: bytes) -> dict[str, Any]:
            image, shown = self.load_to_show(service, lambda: content, THUMBNAIL_SIDE)
            captions = self._patiently(service, image, decoding)
            return {
                "photo": API_FILES + save_bytes_to_cache(jpeg_of(shown), "photo.jpg", str(uploads().folder)),
                "captions": [each.text for each in captions],
                "sure": word_probability(captions[0]),
            }

        rows: list[dict[str, Any]] = []
        left_out: list[dict[str, str]] = []
        reports = _Reports()
        with closing(caption_all(images_of(files, self.limits), caption)) as captioned:
            for name, outcome in captioned:
                if isinstance(outcome, RefusedError):
                    left_out.append({"name": name, "why": str(outcome)})
                else:
                    rows.append({"name": name, **outcome})
                if reports.is_due():
                    yield json.dumps({"rows": rows, "total": total, "weights": weights, "is_done": False})
        yield json.dumps({"rows": rows, "total": total, "weights": weights, "left_out": left_out, "is_done": True})

    def caption_files(
        self, files: Iterable[Sent], service: CaptionService, decoding: Decoding
    ) -> Iterator[list[dict[str, Any]]]:
        """Caption files and archives; yields for each image so far its name and its captions, or the error."""

        def caption(content: bytes) -> list[Caption]:
            return self._patiently(service, self.load(service, lambda: content), decoding)

        answers: list[dict[str, Any]] = []
        reports = _Reports()
        with closing(caption_all(images_of(files, self.limits), caption)) as captioned:
            for name, outcome in captioned:
                if isinstance(outcome, RefusedError):
                    answers.append({"file_name": name, "error": str(outcome)})
                else:
                    best, *others = (caption_as_json(each, with_attention=False) for each in outcome)
                    answers.append({"file_name": name, **best, "other_captions": others})
                if reports.is_due():
                    yield answers
        yield answers

    def save_review(self, sent: Any) -> str:
        """Write the rows that the review grid sent as a file to download."""
        with as_sentences():
            name, content = saved(*reviewed(sent))
        return save_bytes_to_cache(content, name, str(uploads().folder))  # whose files are deleted after a while

    def _patiently(self, service: CaptionService, image: Image.Image, decoding: Decoding) -> list[Caption]:
        while True:
            try:
                return service(image, decoding).captions
            except BusyError:
                time.sleep(0.1)  # a batch can wait

    def _captioned(self, path: str | None, address: str, checkpoint: str, *settings) -> tuple[dict[str, Any], Any]:
        """As caption_input(), before it is JSON."""
        try:
            if address:
                with self.fetched(_completed(address)) as read:
                    return self._answer(read, checkpoint, *settings), None
            if path is None:
                raise RefusedError("Choose a photo first, or give its web address.")
        except (RefusedError, BusyError) as error:
            return {"refused": str(error), "keeps_caption": True}, gr.skip()
        try:
            return self._answer(lambda: uploads().read(path), checkpoint, *settings), gr.skip()
        except BusyError as error:
            return {"refused": str(error)}, gr.skip()
        except RefusedError as error:
            return {"refused": str(error)}, None

    def _answer(self, read: Read, checkpoint: str, *settings) -> dict[str, Any]:
        decoding = Decoding(*settings)
        service = self.pool[checkpoint]
        image, shown = self.load_to_show(service, read, SHOWN_SIDE)
        return answer_of(service(image, decoding)) | shown_image(shown)

    def _described(self, checkpoint: str, decoding: Decoding) -> str:
        search = {
            "beam": f"beam search with {decoding.num_beams} beams",
            "greedy": "greedy search",
            "sample": f"sampling at temperature {decoding.temperature:g}",
        }[decoding.strategy]
        return search if self.pool.names == (checkpoint,) else f"{checkpoint}, {search}"


class _Reports:
    """Says when it is time to tell how far a long task is."""

    def __init__(self):
        self._last = time.monotonic()

    def is_due(self) -> bool:
        is_due = time.monotonic() > self._last + REPORT_SECONDS
        if is_due:
            self._last = time.monotonic()
        return is_due


def _is_address(text: str | None) -> bool:
    return (text or "").strip().startswith(ADDRESSES)


def _completed(address: str) -> str:
    """An address as people type it: `example.org/photo.jpg` is taken as https."""
    host = address.partition("/")[0]
    return f"https://{address}" if "." in host and ":" not in address and " " not in address else address


@contextmanager
def _damage_refused() -> Iterator[None]:
    try:
        yield
    except RefusedError:
        raise
    except ValueError:
        raise RefusedError("This picture can't be read to its end, it may be damaged.") from None


def shown_size(picture: Image.Image, side: int) -> tuple[int, int]:
    """Height and width of an image, upright, within a square."""
    width, height = picture.size
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as in open_image
        orientation = None
    if orientation in QUARTER_TURNS and picture.format != "TIFF":  # Pillow gives the size of a turned TIFF
        width, height = height, width
    shrink = min(1.0, side / max(width, height))
    return max(1, round(height * shrink)), max(1, round(width * shrink))
