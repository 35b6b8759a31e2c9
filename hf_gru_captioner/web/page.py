"""The page: caption a photo and look around in it, compare two ways of captioning it, or caption many and get a table.

Everything that a person can break is checked in `untrusted_images`, `uploads`, `bodies` and `doors`, everything that
many people share is in `service`; here is only what stands where. The looking around happens in the browser
(`viewer.js`), on one answer of the server. Programs have typed endpoints of their own, `/caption` and `/stream`.
"""

import base64
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from PIL import ExifTags, Image
from starlette.middleware import Middleware

from ..untrusted_images import ADDRESSES, LIMITS, Limits, RefusedError, fetch_picture, open_picture
from .answers import answer_of, as_html, as_sentences, shown_photo
from .bodies import BodyLimit
from .doors import MAX_CONNECTIONS, Doors, with_patience
from .heap import limit_arenas
from .many import caption_all, pictures_of, to_csv, to_jsonl
from .queueing import NoSuchSession, outlive_clients
from .service import NUM_DECODERS, BusyError, CaptionService, Decoding, ServicePool
from .uploads import uploads

HERE = Path(__file__).parent
MAX_WAITING = 64  # callers
NO_PHOTO = "A photo is a web address, or the file in base64."
MAX_STREAMS = 4  # callers whose captions grow at the same time
MAX_FETCHES = 8  # addresses that are fetched at the same time; each may be 20 MB
MAX_SESSIONS = 64  # whose last answers Gradio remembers
SHOWN_SIDE = 640  # pixels of the longer side of the photo that goes back to the page
ON_THEIR_SIDE = (5, 6, 7, 8)  # EXIF's orientations of photos that are turned by a quarter
STRATEGIES = [("beam search", "beam"), ("greedy", "greedy"), ("sampling", "sample")]
STANDARD = Decoding()
FIELDS = {field.name: field for field in dataclasses.fields(Decoding)}

LoadImage = Callable[..., Image.Image]
Read = Callable[[], bytes]


def build_page(pool: ServicePool, load_image: LoadImage, *, photos: Sequence[Path] = (), limits: Limits = LIMITS):
    """The page as `gr.Blocks`.

    Args:
        pool: What captions photos.
        load_image: Makes a picture upright and RGB.
        photos: Examples to click on.
        limits: What strangers may send.
    """

    # Threads of their own, not turns: C's allocator keeps what each thread that ever decoded needed.
    decoders = ThreadPoolExecutor(NUM_DECODERS, "decode")
    fetches = threading.Semaphore(MAX_FETCHES)

    def load(service: CaptionService, read: Read) -> Image.Image:
        """A photo for the encoder; files are read and decoded by a few threads, however many callers wait."""

        def work() -> Image.Image:
            content = read()
            open_picture(content, limits)
            return service.load(content)

        with _damaged_is_said():
            return decoders.submit(work).result()

    def load_to_show(service: CaptionService, read: Read, side: int) -> tuple[Image.Image, Image.Image]:
        """A photo for the encoder, and one to show; it is decoded twice rather than held whole while it waits."""

        def work() -> tuple[Image.Image, Image.Image]:
            content = read()
            picture = open_picture(content, limits)
            return service.load(content), load_image(content, size=shown_size(picture, side))

        with _damaged_is_said():
            return decoders.submit(work).result()

    def look(read: Read, checkpoint: str, *settings) -> str:
        decoding = Decoding(*settings)
        service = pool[checkpoint]
        photo, shown = load_to_show(service, read, SHOWN_SIDE)
        return json.dumps(answer_of(service(photo, decoding)) | shown_photo(shown))

    @contextmanager
    def fetched(address: str) -> Iterator[Read]:
        """The picture of an address, held only as long as this lasts."""
        if not fetches.acquire(blocking=False):
            raise BusyError("Too many addresses are being fetched right now. Please try again in a moment.")
        try:
            content = fetch_picture(address, limits)
            yield lambda: content
        finally:
            fetches.release()

    def caption_photo(path: str | None, checkpoint: str, *settings) -> str:
        """Caption a photo that was uploaded: as /caption, in JSON as text, with the photo as the page shows it."""
        if path is None:
            return ""
        with as_sentences():
            return look(lambda: uploads().read(path), checkpoint, *settings)

    def caption_there(path: str | None, address: str | None, checkpoint: str, *settings) -> str:
        """Caption what there is: the picture of the address if one is given, else the photo."""
        with as_sentences():
            if address and address.strip():
                with fetched(address) as read:
                    return look(read, checkpoint, *settings)
            if path is None:
                raise RefusedError("Choose a photo first, or give its web address.")
            return look(lambda: uploads().read(path), checkpoint, *settings)

    def compare(path: str | None, *settings) -> tuple[str, str]:
        if path is None:
            return "", ""
        half = len(settings) // 2
        return caption_photo(path, *settings[:half]), caption_photo(path, *settings[half:])

    def caption_many(
        files: list[str] | None,
        folder: list[str] | None,
        checkpoint: str,
        *settings,
    ):
        if not files and not folder:
            raise gr.Error("Choose some photos first.", print_exception=False)
        with as_sentences():
            service = pool[checkpoint]
            decoding = dataclasses.replace(Decoding(*settings), num_captions=1)

        def caption(content: bytes) -> tuple[Image.Image, str]:
            photo, shown = load_to_show(service, lambda: content, SHOWN_SIDE // 2)
            while True:
                try:
                    return shown, service(photo, decoding).captions[0].text
                except BusyError:
                    time.sleep(0.1)  # whoever brought a whole folder can wait

        shown, rows = [], []
        pictures = pictures_of([*(files or []), *sorted(folder or [])], limits)
        # One for each call: a default argument behind *settings, Gradio leaves as it is, and a `Progress` that calls
        # share hands one visitor's photos to another.
        progress = gr.Progress()
        with closing(caption_all(pictures, caption)) as captioned:
            for name, photo, text in progress.tqdm(captioned, unit="photos"):
                if photo is None:
                    gr.Warning(as_html(f"{name}: {text}"))
                    continue
                rows.append([name, text])
                shown.append((photo, text))
                if len(rows) % 10 == 0:
                    yield gr.skip(), rows
        yield shown, rows

    def save_table(table) -> list[str]:
        rows = [(str(name), str(text)) for name, text in table.itertuples(index=False)]
        contents = {"captions.csv": to_csv(rows), "captions.jsonl": to_jsonl(rows), "metadata.jsonl": to_jsonl(rows)}
        # in the folder of uploads, which is cleared
        return [save_bytes_to_cache(text.encode(), name, saved.GRADIO_CACHE) for name, text in contents.items()]

    uploads()  # before the first component asks where they are to be
    # No delete_cache: `uploads` deletes what is old, and Gradio would delete the examples of one page with another.
    with _Page(title="GRU captioner", analytics_enabled=False) as page:
        gr.Markdown("# What does it see?\nA small captioner on a plain CPU. Point at its words to see where it looked.")
        with gr.Tab("One photo"):
            with gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=300):
                    photo = _photo("photo")
                    with gr.Row():
                        address = gr.Textbox(label="or its web address", elem_id="address", scale=4, max_lines=1)
                        fetch = gr.Button("Caption", elem_id="fetch", scale=1, min_width=90)
                    with gr.Accordion("How it writes", open=False):
                        settings = _controls(pool)
                with gr.Column(scale=3, min_width=300):
                    viewer = _viewer("viewer")
            if photos:
                gr.Examples([[str(path)] for path in photos], [photo], label="Examples", cache_examples=False)
            gr.on(
                [photo.change, *(control.change for control in settings)],
                caption_photo,
                [photo, *settings],
                viewer,
                api_name="caption_photo",
                concurrency_limit=None,
                show_progress="minimal",
            )
            # A photo chosen after an address takes its place.
            photo.input(None, None, address, js="() => ''", api_visibility="private")
            gr.on(
                [fetch.click, address.submit],
                caption_there,
                [photo, address, *settings],
                viewer,
                api_visibility="private",
                concurrency_limit=None,
            )
        with gr.Tab("Compare"):
            gr.Markdown("One photo, captioned in two ways.")
            compared = _photo("compared")
            sides = []
            with gr.Row(equal_height=False):
                for side, standard in (("left", STANDARD), ("right", Decoding("greedy"))):
                    with gr.Column(min_width=300):
                        with gr.Accordion("How it writes", open=False):
                            controls = _controls(pool, standard)
                        sides.append((controls, _viewer(f"viewer-{side}")))
            both = [control for controls, _ in sides for control in controls]
            gr.on(
                [compared.change, *(control.change for control in both)],
                compare,
                [compared, *both],
                [viewer for _, viewer in sides],
                api_visibility="private",
                concurrency_limit=None,
                show_progress="minimal",
            )
        with gr.Tab("Many photos"):
            with gr.Row():
                files = gr.File(file_count="multiple", file_types=["image", ".zip"], label="Photos, or ZIP archives")
                folder = gr.File(file_count="directory", label="or a folder")
            start = gr.Button("Caption them all", variant="primary", elem_id="start")
            gallery = gr.Gallery(label="Captions", columns=4, height=420, elem_id="gallery")
            table = gr.Dataframe(
                headers=["file_name", "caption"],
                datatype="str",
                column_count=2,
                static_columns=[0],
                label="Captions to edit",
                wrap=True,
                elem_id="table",
            )
            save = gr.Button("Make files of the table", elem_id="save")
            saved = gr.File(
                label="captions.csv, captions.jsonl, metadata.jsonl (to lie beside the photos)", elem_id="saved"
            )
            start.click(
                caption_many,
                [files, folder, *settings],
                [gallery, table],
                api_name="caption_many",
                concurrency_limit=2,
            )
            save.click(save_table, table, saved, api_visibility="private")
        _add_api(pool, load, fetched, limits)
    return page


def serve(pool: ServicePool, load_image: LoadImage, *, photos: Sequence[Path], host: str, port: int | None) -> None:
    """Serves the page until it is interrupted; the model has captioned once before the first visitor comes."""
    limit_arenas()  # before torch has its threads, too
    pool[pool.names[0]](Image.new("RGB", (224, 224), "grey"))
    page = build_page(pool, load_image, photos=photos)
    launch(page, server_name=host, server_port=port)
    print(f"{page.local_url}  (Ctrl+C ends)", flush=True)
    page.block_thread()


def launch(page: gr.Blocks, **server) -> None:
    """Begins to serve, with a bound on who waits and on what is uploaded; without share link, monitoring or footer."""
    limit_arenas()
    uploads().keep_present()
    page.queue(max_size=MAX_WAITING, api_open=False)  # nobody passes by those who wait
    outlive_clients(page)
    page.launch(
        max_file_size=LIMITS.picture_bytes,
        app_kwargs={
            "middleware": [
                Middleware(Doors, uploads=uploads()),
                Middleware(BodyLimit, limit=LIMITS.text_bytes, uploads=uploads()),
                Middleware(NoSuchSession),
            ]
        },
        state_session_capacity=MAX_SESSIONS,
        share=False,
        ssr_mode=False,  # a second server in front of this one, which would pass by the doors
        enable_monitoring=False,
        footer_links=[],
        quiet=True,
        prevent_thread_lock=True,
        **server,
    )
    config: Any = page.server.config  # looked at for each connection
    config.http_protocol_class = with_patience(config.http_protocol_class)
    config.limit_concurrency = MAX_CONNECTIONS


class _Page(gr.Blocks):
    """Looks at every path that a visitor names, whichever component or endpoint it is for, before Gradio does."""

    async def preprocess_data(self, block_fn, inputs, state, explicit_call=False):
        with as_sentences():
            await anyio.to_thread.run_sync(uploads().check_all, inputs)
        for paths in self.temp_file_sets:  # of every file that came or went, for a deletion that `uploads` does
            paths.clear()
        state = _Forgetful()
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)


class _Forgetful:
    """In place of a session's state while inputs are looked at: Gradio would keep every photo that came as text, and
    would go by components as the session has changed them, which are not those that were checked here."""

    def __contains__(self, key: int) -> bool:
        return False

    def __setitem__(self, key: int, value: Any) -> None:
        pass

    def _update_value_in_config(self, key: int, value: Any) -> None:
        pass


@contextmanager
def _damaged_is_said() -> Iterator[None]:
    try:
        yield
    except RefusedError:
        raise
    except ValueError:
        raise RefusedError("This picture can't be read to its end, it may be damaged.") from None


def shown_size(picture: Image.Image, side: int) -> tuple[int, int]:
    """Height and width of a picture, upright, within a square."""
    width, height = picture.size
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as in open_picture
        orientation = None
    if orientation in ON_THEIR_SIDE and picture.format != "TIFF":  # whose size Pillow tells as it will be turned
        width, height = height, width
    shrink = min(1.0, side / max(width, height))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def _add_api(
    pool: ServicePool,
    load: Callable[[CaptionService, Read], Image.Image],
    fetched: Callable[[str], AbstractContextManager[Read]],
    limits: Limits,
) -> None:
    """The endpoints for programs. Their photos come as text: Gradio checks no path that a typed endpoint is given."""

    def photo_of(photo: str, service: CaptionService) -> Image.Image:
        if not isinstance(photo, str):
            raise RefusedError(NO_PHOTO)
        if photo.startswith(ADDRESSES):
            with fetched(photo) as read:
                return load(service, read)
        if len(photo) > limits.text_bytes:
            raise RefusedError(
                f"A photo in base64 has at most {limits.text_bytes / 1e6:.0f} MB; larger ones can be uploaded."
            )
        return load(service, lambda: decoded(photo))

    def decoded(photo: str) -> bytes:
        try:
            return base64.b64decode(photo.partition("base64,")[2] or photo, validate=True)
        except ValueError:
            raise RefusedError(NO_PHOTO) from None

    def caption(
        photo: str,
        strategy: str = STANDARD.strategy,
        num_captions: int = 1,
        num_beams: int = STANDARD.num_beams,
        temperature: float = STANDARD.temperature,
        top_p: float = STANDARD.top_p,
        length_penalty: float = STANDARD.length_penalty,
        max_words: int = STANDARD.max_words,
        no_repeat_ngram: int = STANDARD.no_repeat_ngram,
        checkpoint: str = pool.names[0],
    ) -> dict[str, Any]:
        """Caption a photo, given by its web address or as base64.

        Returns captions, the best first, each with text, score, probability and words; each word with probability,
        attention (rows of the grid of regions) and alternatives; and the milliseconds of encoder and decoder.
        """
        settings = (strategy, num_captions, num_beams, temperature, top_p, length_penalty, max_words, no_repeat_ngram)
        with as_sentences():
            decoding = Decoding(*settings)
            service = pool[checkpoint]
            return answer_of(service(photo_of(photo, service), decoding))

    def stream(
        photo: str,
        strategy: str = "greedy",
        temperature: float = STANDARD.temperature,
        max_words: int = STANDARD.max_words,
        checkpoint: str = pool.names[0],
    ) -> Iterator[str]:
        """The caption of a photo as it grows, word by word, greedy or sampled."""
        with as_sentences():
            if strategy == "beam":
                raise RefusedError("A beam search knows its words only at the end: greedy or sample.")
            decoding = Decoding(strategy, num_captions=1, temperature=temperature, max_words=max_words)
            service = pool[checkpoint]
            yield from service.stream(photo_of(photo, service), decoding)

    gr.api(caption, api_name="caption", concurrency_limit=None)
    gr.api(stream, api_name="stream", concurrency_limit=MAX_STREAMS)


def _photo(elem_id: str) -> gr.Image:
    """Hands over the uploaded file as it is; by itself, `gr.Image` opens it, and names its path where it can't."""
    image = gr.Image(
        type="filepath", sources=["upload", "clipboard", "webcam"], label="Photo", elem_id=elem_id, height=320
    )
    # Not a subclass, for which Gradio would write a .pyi file beside this one.
    image.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return image


def _viewer(elem_id: str) -> gr.HTML:
    """Shows an answer of the server, handed to it as JSON."""
    return gr.HTML(
        "",
        html_template=(HERE / "viewer.html").read_text(),
        css_template=(HERE / "viewer.css").read_text(),
        js_on_load=(HERE / "viewer.js").read_text(),
        elem_id=elem_id,
        label="Caption",
    )


def _controls(pool: ServicePool, standard: Decoding = STANDARD) -> list[Any]:
    """The checkpoint, and the fields of a `Decoding`, in their order."""

    def slider(name: str, step: float, label: str, info: str | None = None) -> gr.Slider:
        lowest, highest = FIELDS[name].metadata["bounds"]
        return gr.Slider(lowest, highest, getattr(standard, name), step=step, label=label, info=info)

    return [
        gr.Dropdown(
            list(pool.names),
            value=pool.names[0],
            allow_custom_value=pool.any_name,
            visible=pool.any_name or len(pool.names) > 1,
            label="Checkpoint",
            info="a folder or a Hub id; only its weights and settings are read, none of its code is run"
            if pool.any_name
            else None,
        ),
        gr.Radio(STRATEGIES, value=standard.strategy, label="Search"),
        slider("num_captions", 1, "Captions"),
        slider("num_beams", 1, "Beams", "of beam search"),
        slider("temperature", 0.1, "Temperature", "of sampling"),
        slider("top_p", 0.05, "Top-p", "of sampling"),
        slider("length_penalty", 0.1, "Length penalty", "higher: longer captions"),
        slider("max_words", 1, "Words at the most"),
        slider("no_repeat_ngram", 1, "No word group twice", "of this length; 0: may"),
    ]
