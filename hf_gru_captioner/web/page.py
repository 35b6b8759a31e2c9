"""The page: caption a photo and look around in it, or caption many and get a table.

Everything that a person can break is checked in `intake`, everything that many people share is in `service`; here is
only what stands where. The looking around happens in the browser (`viewer.js`), on one answer of the server.
"""

import base64
import dataclasses
import io
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from .intake import LIMITS, Limits, RefusedError, fetch_picture, open_picture
from .many import caption_all, pictures_of, to_csv, to_jsonl
from .service import BusyError, Captioned, CaptionService, Decoding

HERE = Path(__file__).parent
MAX_WAITING = 64  # callers
KEPT_SECONDS = 3600  # that an uploaded file stays on the disk
SHOWN_SIDE = 640  # pixels of the longer side of the photo that goes back to the page

LoadImage = Callable[[Image.Image], Image.Image]


def build_page(service: CaptionService, load_image: LoadImage, *, photos: Sequence[Path] = (), limits: Limits = LIMITS):
    """The page as `gr.Blocks`.

    Args:
        service: Captions photos.
        load_image: Makes a picture upright and RGB.
        photos: Examples to click on.
        limits: What strangers may send.
    """

    def caption_photo(path: str | None, *settings) -> str:
        """Caption a photo: its captions with words, probabilities, attention and rivals, as JSON."""
        if path is None:
            return ""
        return _caption(service, load_image, Path(path).read_bytes(), decoding_of(*settings), limits)

    def caption_address(address: str, *settings) -> str:
        """Caption the photo at a public web address: as caption_photo."""
        with _as_sentences():
            content = fetch_picture(address, limits)
        return _caption(service, load_image, content, decoding_of(*settings), limits)

    def caption_many(files: list[str] | None, folder: list[str] | None, *settings, progress=gr.Progress()):  # noqa: B008
        """Caption photos and the photos in ZIP archives: a gallery, and a table of file names and captions."""
        decoding = dataclasses.replace(decoding_of(*settings), num_captions=1)
        paths = [*(files or []), *sorted(folder or [])]
        if not paths:
            raise gr.Error("Choose some photos first.", print_exception=False)

        def caption(content: bytes) -> tuple[Image.Image, str]:
            photo = _load(load_image, content, limits)
            while True:
                try:
                    return photo, service(photo, decoding).captions[0].text
                except BusyError:
                    time.sleep(0.1)  # whoever brought a whole folder can wait

        shown, rows = [], []
        for name, photo, text in progress.tqdm(caption_all(pictures_of(paths, limits), caption), unit="photos"):
            if photo is None:
                gr.Warning(f"{name}: {text}")
                continue
            rows.append([name, text])
            photo.thumbnail((SHOWN_SIDE // 2, SHOWN_SIDE // 2))
            shown.append((photo, text))
            if len(rows) % 10 == 0:
                yield gr.skip(), rows
        yield shown, rows

    def save_table(table) -> list[str]:
        rows = [(str(name), str(text)) for name, text in table.itertuples(index=False)]
        folder = Path(tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR")))
        contents = {"captions.csv": to_csv(rows), "captions.jsonl": to_jsonl(rows), "metadata.jsonl": to_jsonl(rows)}
        for name, content in contents.items():
            (folder / name).write_text(content)
        return [str(folder / name) for name in contents]

    with gr.Blocks(title="GRU captioner", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gr.Markdown("# What does it see?\nA small captioner on a plain CPU. Point at its words to see where it looked.")
        with gr.Tab("One photo"):
            with gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=300):
                    photo = gr.Image(
                        type="filepath",
                        sources=["upload", "clipboard", "webcam"],
                        label="Photo",
                        elem_id="photo",
                        height=320,
                    )
                    with gr.Row():
                        address = gr.Textbox(label="or its web address", elem_id="address", scale=4, max_lines=1)
                        fetch = gr.Button("Caption", elem_id="fetch", scale=1, min_width=90)
                    with gr.Accordion("How it writes", open=False):
                        settings = decoding_controls()
                with gr.Column(scale=3, min_width=300):
                    viewer = make_viewer("viewer")
            if photos:
                gr.Examples([[str(path)] for path in photos], [photo], label="Examples", cache_examples=False)
            gr.on(
                [photo.change, *(control.change for control in settings)],
                caption_photo,
                [photo, *settings],
                viewer,
                api_name="caption",
                concurrency_limit=None,
                show_progress="minimal",
            )
            gr.on(
                [fetch.click, address.submit],
                caption_address,
                [address, *settings],
                viewer,
                api_name="caption_address",
                concurrency_limit=None,
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
            saved = gr.File(label="captions.csv, captions.jsonl, metadata.jsonl (to lie beside the photos)")
        start.click(
            caption_many,
            [files, folder, *settings],
            [gallery, table],
            api_name="caption_many",
            concurrency_limit=2,
        )
        save.click(save_table, table, saved, api_visibility="private")
    return page


def serve(captioner, load_image: LoadImage, *, photos: Sequence[Path], host: str, port: int | None) -> None:
    """Serves the page until it is interrupted; the model has captioned once before the first visitor comes."""
    service = CaptionService(captioner, max_waiting=MAX_WAITING)
    service(Image.new("RGB", (224, 224), "grey"))
    page = build_page(service, load_image, photos=photos)
    page.queue(max_size=MAX_WAITING)
    page.launch(
        server_name=host,
        server_port=port,
        max_file_size=LIMITS.picture_bytes,
        share=False,
        enable_monitoring=False,
        footer_links=[],
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f"{page.local_url}  (Ctrl+C ends)", flush=True)
    page.block_thread()


def make_viewer(elem_id: str) -> gr.HTML:
    """Shows an answer of the server, handed to it as JSON."""
    return gr.HTML(
        "",
        html_template=(HERE / "viewer.html").read_text(),
        css_template=(HERE / "viewer.css").read_text(),
        js_on_load=(HERE / "viewer.js").read_text(),
        elem_id=elem_id,
        label="Caption",
    )


def decoding_controls() -> list[Any]:
    """The fields of a `Decoding`, in their order."""
    standard = Decoding()
    names = [("beam search", "beam"), ("greedy", "greedy"), ("sampling", "sample")]
    return [
        gr.Radio(names, value=standard.strategy, label="Search"),
        gr.Slider(1, 5, standard.num_captions, step=1, label="Captions"),
        gr.Slider(1, 10, standard.num_beams, step=1, label="Beams", info="of beam search"),
        gr.Slider(0.1, 2.0, standard.temperature, step=0.1, label="Temperature", info="of sampling"),
        gr.Slider(0.1, 1.0, standard.top_p, step=0.05, label="Top-p", info="of sampling"),
        gr.Slider(-2.0, 2.0, standard.length_penalty, step=0.1, label="Length penalty", info="higher: longer captions"),
        gr.Slider(3, 40, standard.max_words, step=1, label="Words at the most"),
        gr.Slider(0, 4, standard.no_repeat_ngram, step=1, label="No word group twice", info="of this length; 0: may"),
    ]


def decoding_of(*settings) -> Decoding:
    """Values of the controls -> what they mean; the browser makes no difference between 3 and 3.0."""
    standard = Decoding()
    named = zip((field.name for field in dataclasses.fields(Decoding)), settings, strict=True)
    return Decoding(**{name: type(getattr(standard, name))(value) for name, value in named})


def _caption(service, load_image, content: bytes, decoding: Decoding, limits: Limits) -> str:
    with _as_sentences():
        photo = _load(load_image, content, limits)
        return json.dumps(answer_of(photo, service(photo, decoding)))


def _load(load_image: LoadImage, content: bytes, limits: Limits) -> Image.Image:
    picture = open_picture(content, limits)
    try:
        return load_image(picture)
    except ValueError:
        raise RefusedError("This picture can't be read to its end, it may be damaged.") from None


@contextmanager
def _as_sentences():
    """What can't be done is said on the page."""
    try:
        yield
    except (RefusedError, BusyError) as error:
        raise gr.Error(str(error), print_exception=False) from None


def answer_of(photo: Image.Image, captioned: Captioned) -> dict[str, Any]:
    """What the viewer shows, as JSON has it: the photo, small, and each caption with its words, maps and rivals."""
    shown = photo.copy()
    shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=88)
    return {
        "photo": f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}",
        "width": shown.width,
        "height": shown.height,
        "encoder_ms": captioned.encoder_ms,
        "decoder_ms": captioned.decoder_ms,
        "batch": captioned.batch,
        "captions": [caption_as_json(caption) for caption in captioned.captions],
    }


def caption_as_json(caption) -> dict[str, Any]:
    """A caption's text, score and probability (both of all its words), and of each word probability, map, rivals."""
    words = []
    for place, text in enumerate(caption.words):
        attention = None if caption.attention is None else caption.attention[place].round(4).tolist()
        probability = math.exp(caption.log_probabilities[place])
        rivals = [[rival, round(share, 4)] for rival, share in caption.rivals[place]] if caption.rivals else []
        words.append({"text": text, "probability": round(probability, 4), "attention": attention, "rivals": rivals})
    probability = math.exp(sum(caption.log_probabilities))
    return {"text": caption.text, "score": round(caption.score, 4), "probability": probability, "words": words}
