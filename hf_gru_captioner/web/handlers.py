"""What the page's events do: load an image within limits, caption it, and return what the components show."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from PIL import ExifTags, Image

from ..untrusted_images import Limits, RefusedError, fetch_image, open_image
from .answers import answer_of, as_html, as_sentences, shown_image
from .batch import caption_all, images_of, to_csv, to_jsonl
from .service import NUM_DECODERS, BusyError, CaptionService, Decoding, ServicePool
from .uploads import uploads

MAX_FETCHES = 8  # addresses that are fetched at the same time; each may be 20 MB
SHOWN_SIDE = 640  # pixels of the longer side of the image that goes back to the page
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF's orientations of images that are turned by a quarter

LoadImage = Callable[..., Image.Image]
Read = Callable[[], bytes]


class Handlers:
    """The functions behind the page's buttons and inputs; each may be called from any number of threads.

    Args:
        pool: Captions images.
        load_image: Makes an image upright and RGB.
        limits: What visitors may send.
    """

    def __init__(self, pool: ServicePool, load_image: LoadImage, limits: Limits):
        self.pool = pool
        self.load_image = load_image
        self.limits = limits
        # Threads of their own instead of a semaphore: C's allocator keeps what each thread that ever decoded needed.
        self._decoders = ThreadPoolExecutor(NUM_DECODERS, "decode")
        self._fetches = threading.Semaphore(MAX_FETCHES)

    def load(self, service: CaptionService, read: Read) -> Image.Image:
        """An image for the encoder; files are read and decoded by a few threads, however many callers wait."""

        def work() -> Image.Image:
            content = read()
            open_image(content, self.limits)
            return service.load(content)

        with _damage_refused():
            return self._decoders.submit(work).result()

    def load_to_show(self, service: CaptionService, read: Read, side: int) -> tuple[Image.Image, Image.Image]:
        """An image for the encoder, and one to show; it is decoded twice rather than kept whole while it waits."""

        def work() -> tuple[Image.Image, Image.Image]:
            content = read()
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

    def caption_image(self, path: str | None, checkpoint: str, *settings) -> str:
        """Caption an uploaded image: as /caption, in JSON as text, with the image as the page shows it."""
        if path is None:
            return ""
        with as_sentences():
            return self._answer(lambda: uploads().read(path), checkpoint, *settings)

    def caption_input(self, path: str | None, address: str | None, checkpoint: str, *settings) -> str:
        """Caption the image at the address if one is given, else the uploaded image."""
        with as_sentences():
            if address and address.strip():
                with self.fetched(address) as read:
                    return self._answer(read, checkpoint, *settings)
            if path is None:
                raise RefusedError("Choose a photo first, or give its web address.")
            return self._answer(lambda: uploads().read(path), checkpoint, *settings)

    def compare(self, path: str | None, *settings) -> tuple[str, str]:
        """Caption an uploaded image with two halves of settings."""
        if path is None:
            return "", ""
        half = len(settings) // 2
        return self.caption_image(path, *settings[:half]), self.caption_image(path, *settings[half:])

    def caption_many(
        self,
        files: list[str] | None,
        folder: list[str] | None,
        checkpoint: str,
        *settings,
    ):
        """Caption uploaded files and archives; yields the gallery and the rows of the table."""
        if not files and not folder:
            raise gr.Error("Choose some photos first.", print_exception=False)
        with as_sentences():
            service = self.pool[checkpoint]
            decoding = dataclasses.replace(Decoding(*settings), num_captions=1)

        def caption(content: bytes) -> tuple[Image.Image, str]:
            image, shown = self.load_to_show(service, lambda: content, SHOWN_SIDE // 2)
            while True:
                try:
                    return shown, service(image, decoding).captions[0].text
                except BusyError:
                    time.sleep(0.1)  # a batch can wait

        shown, rows = [], []
        pictures = images_of([*(files or []), *sorted(folder or [])], self.limits)
        # One for each call: a default argument behind *settings, Gradio leaves as it is, and a `Progress` that calls
        # share hands one visitor's images to another.
        progress = gr.Progress()
        with closing(caption_all(pictures, caption)) as captioned:
            for name, image, text in progress.tqdm(captioned, unit="photos"):
                if image is None:
                    gr.Warning(as_html(f"{name}: {text}"))
                    continue
                rows.append([name, text])
                shown.append((image, text))
                if len(rows) % 10 == 0:
                    yield gr.skip(), rows
        yield shown, rows

    def save_table(self, table) -> list[str]:
        """Write the table of captions as files to download."""
        rows = [(str(name), str(text)) for name, text in table.itertuples(index=False)]
        contents = {"captions.csv": to_csv(rows), "captions.jsonl": to_jsonl(rows), "metadata.jsonl": to_jsonl(rows)}
        folder = str(uploads().folder)  # whose files are deleted after a while
        return [save_bytes_to_cache(text.encode(), name, folder) for name, text in contents.items()]

    def _answer(self, read: Read, checkpoint: str, *settings) -> str:
        decoding = Decoding(*settings)
        service = self.pool[checkpoint]
        image, shown = self.load_to_show(service, read, SHOWN_SIDE)
        return json.dumps(answer_of(service(image, decoding)) | shown_image(shown))


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
