"""Event handlers of the page: they load an image within limits, caption it, and return what the components show."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, TypeVar

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from PIL import ExifTags, Image

from ..captioner import Caption
from ..untrusted_images import ADDRESSES, Limits, RefusedError, fetch_image, open_image, photo_of
from .answers import answer_of, as_sentences, caption_as_json, jpeg_of, mean_probability, shown_image
from .batch import Sent, caption_all, images_of, saved
from .messages import reviewed, sent_files
from .service import NUM_DECODERS, BusyError, CaptionService, Decoding, ServicePool
from .uploads import uploads

MAX_FETCHES = 8  # addresses fetched at the same time; each image may have 20 MB
SHOWN_SIDE = 1024  # pixels of the longer side of the image sent back to the page
THUMBNAIL_SIDE = 320  # pixels of the longer side of an image in the review grid
REPORT_SECONDS = 0.5  # between two progress reports
API_FILES = "gradio_api/file="  # URL of an upload, relative to the page
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations of images rotated by 90 degrees

LoadImage = Callable[..., Image.Image]
Read = Callable[[], bytes]
Loaded = TypeVar("Loaded")


class Handlers:
    """The functions behind the page's buttons and inputs; all are thread-safe.

    Args:
        pool: Captions images.
        load_image: Loads an image, upright and RGB.
        limits: Limits on what visitors may send.
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
        # Separate threads instead of a semaphore: malloc keeps the memory of each thread that ever decoded an image.
        self._decoders = ThreadPoolExecutor(NUM_DECODERS, "decode")
        self._fetches = threading.Semaphore(MAX_FETCHES)

    def load(self, service: CaptionService, read: Read) -> Image.Image:
        """Loads an image for the encoder."""
        return self._decode(read, lambda content, _: service.load(content))

    def load_to_show(self, service: CaptionService, read: Read, side: int) -> tuple[Image.Image, Image.Image]:
        """Loads an image for the encoder, and one to show; decodes it twice rather than keep it whole in memory."""

        def decode(content: bytes, image: Image.Image) -> tuple[Image.Image, Image.Image]:
            return service.load(content), self.load_image(content, size=shown_size(image, side))

        return self._decode(read, decode)

    def _decode(self, read: Read, decode: Callable[[bytes, Image.Image], Loaded]) -> Loaded:
        """Calls `decode` with a file's content and the image opened from it.

        A few threads read and decode files, however many callers wait.
        """

        def work() -> Loaded:
            content = photo_of(read(), self.limits)
            return decode(content, open_image(content, self.limits))

        try:
            return self._decoders.submit(work).result()
        except RefusedError:
            raise
        except ValueError:
            raise RefusedError("This photo can't be read to its end; it may be damaged.") from None

    @contextmanager
    def fetched(self, address: str) -> Iterator[Read]:
        """Fetches the image at an address, kept only within the block.

        Raises:
            BusyError: Too many addresses are being fetched.
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
        """Captions again after a change of photo or settings; returns as caption_input().

        An address is used only if there is no photo, since it may be left over from before.
        """
        if path is None and not _with_scheme(address).lower().startswith(ADDRESSES):
            return gr.skip(), gr.skip()
        return self.caption_input(path, address if path is None else "", checkpoint, *settings)

    def caption_input(self, path: str | None, address: str, checkpoint: str, *settings) -> tuple:
        """Captions the image at the address if one is given, else the uploaded one.

        Returns:
            The answer for the viewer, as JSON: as from /caption, with the image as shown on the page, or why it was
            rejected. And the photo input, cleared if an address was used or the file rejected.
        """
        answer, kept = self._try_caption(path, _with_scheme(address), checkpoint, *settings)
        return json.dumps(answer), kept

    def compare(self, path: str | None, *settings) -> tuple:
        """Captions an uploaded image with each half of the settings; returns two answers and the photo input."""
        if path is None:
            return gr.skip(), gr.skip(), gr.skip()
        half = len(settings) // 2
        sides, answers, kept = {"Left": settings[:half], "Right": settings[half:]}, [], gr.skip()
        for side, (checkpoint, *others) in sides.items():
            answer, kept = self._try_caption(path, "", checkpoint, *others)
            if "captions" in answer:
                answer["title"] = f"{side}: {self._description(checkpoint, Decoding(*others))}"
            answers.append(answer)
        left, right = ([each["caption"] for each in answer.get("captions", ())][:1] for answer in answers)
        if left and left == right:
            answers[1]["title"] += " (the same caption)"
        return *map(json.dumps, answers), kept

    def caption_for_review(self, sent: Any, checkpoint: str, *settings) -> Iterator[str]:
        """Captions the files sent by the review grid; yields all rows so far as JSON, last with what was left out.

        `weights` is the option that names the checkpoint in the training command; empty for the shipped one.
        """
        with as_sentences():
            files = sent_files(sent, uploads())
            decoding = Decoding(*settings)
            self.pool[checkpoint]  # refused before the first photo is read
        train_from = self.train_from(checkpoint)
        weights = f" --model.checkpoint {train_from}" if train_from else ""
        total = None if any(file.path.suffix.lower() == ".zip" for file in files) else len(files)

        def caption(content: bytes) -> dict[str, Any]:
            image, shown = self.load_to_show(self.pool[checkpoint], lambda: content, THUMBNAIL_SIDE)
            captions = self._caption_patiently(checkpoint, image, decoding)
            return {
                "photo": API_FILES + save_bytes_to_cache(jpeg_of(shown), "photo.jpg", str(uploads().folder)),
                "captions": [each.text for each in captions],
                "sure": mean_probability(captions[0]),
            }

        rows: list[dict[str, Any]] = []
        left_out: list[dict[str, str]] = []
        reports = _ReportTimer()
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
        self, files: Iterable[Sent], checkpoint: str, decoding: Decoding
    ) -> Iterator[list[dict[str, Any]]]:
        """Captions files and archives; yields for each image so far its name, and its captions or the error.

        Raises:
            RefusedError: There is no such checkpoint, or it is not allowed.
        """
        self.pool[checkpoint]  # refused before the first photo is read

        def caption(content: bytes) -> list[Caption]:
            image = self.load(self.pool[checkpoint], lambda: content)
            return self._caption_patiently(checkpoint, image, decoding)

        answers: list[dict[str, Any]] = []
        reports = _ReportTimer()
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
        """Writes the rows sent by the review grid to a file to download."""
        with as_sentences():
            name, content = saved(*reviewed(sent))
        return save_bytes_to_cache(content, name, str(uploads().folder))  # files there are deleted after a while

    def _caption_patiently(self, checkpoint: str, image: Image.Image, decoding: Decoding) -> list[Caption]:
        while True:
            try:
                return self.pool.caption(checkpoint, image, decoding).captions
            except BusyError:
                time.sleep(0.1)  # a batch can wait

    def _try_caption(self, path: str | None, address: str, checkpoint: str, *settings) -> tuple[dict[str, Any], Any]:
        """Like caption_input(), before conversion to JSON."""
        try:
            if address:
                with self.fetched(address) as read:
                    return self._answer(read, checkpoint, *settings), None
            if path is None:
                raise RefusedError("Choose a photo first, or enter its web address.")
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
        image, shown = self.load_to_show(self.pool[checkpoint], read, SHOWN_SIDE)
        return answer_of(self.pool.caption(checkpoint, image, decoding)) | shown_image(shown)

    def _description(self, checkpoint: str, decoding: Decoding) -> str:
        search = {
            "beam": f"beam search with {decoding.num_beams} beams",
            "greedy": "greedy search",
            "sample": f"sampling at temperature {decoding.temperature:g}",
        }[decoding.strategy]
        return search if self.pool.names == (checkpoint,) else f"{checkpoint}, {search}"


class _ReportTimer:
    """Says when the next progress report of a long task is due."""

    def __init__(self):
        self._last = time.monotonic()

    def is_due(self) -> bool:
        is_due = time.monotonic() > self._last + REPORT_SECONDS
        if is_due:
            self._last = time.monotonic()
        return is_due


def _with_scheme(typed: str | None) -> str:
    """An address as people type it, with its scheme: `example.org/photo.jpg` becomes https."""
    address = (typed or "").strip()
    host = address.partition("/")[0]
    return f"https://{address}" if "." in host and not {":", " "} & set(host) else address


def shown_size(image: Image.Image, side: int) -> tuple[int, int]:
    """Height and width of an upright image, scaled down to fit in a square."""
    width, height = image.size
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as in open_image
        orientation = None
    if orientation in QUARTER_TURNS and image.format != "TIFF":  # Pillow has already swapped the sides of a TIFF
        width, height = height, width
    shrink = min(1.0, side / max(width, height))
    return max(1, round(height * shrink)), max(1, round(width * shrink))
