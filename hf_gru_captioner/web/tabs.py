"""The tabs of the page: which components there are, and which handler each event calls."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from .handlers import Handlers
from .service import Decoding, ServicePool, has_pytorch

HERE = Path(__file__).parent
STRATEGIES = [("beam search", "beam"), ("greedy", "greedy"), ("sampling", "sample")]
NEED_PYTORCH = ("temperature", "top_p", "no_repeat_ngram")
DEFAULTS = Decoding()
FIELDS = {field.name: field for field in dataclasses.fields(Decoding)}


def one_image_tab(handlers: Handlers, examples: Sequence[Path]) -> list[Any]:
    """One image with a viewer of its captions; returns the controls of checkpoint and decoding."""
    with gr.Tab("One photo"):
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                image = _image_input("photo")
                with gr.Row():
                    address = gr.Textbox(label="or its web address", elem_id="address", scale=4, max_lines=1)
                    fetch = gr.Button("Caption", elem_id="fetch", scale=1, min_width=90)
                with gr.Accordion("How it writes", open=False):
                    settings = _controls(handlers.pool)
            with gr.Column(scale=3, min_width=300):
                viewer = _viewer("viewer")
        if examples:
            gr.Examples([[str(path)] for path in examples], [image], label="Examples", cache_examples=False)
        gr.on(
            [image.change, *(control.change for control in settings)],
            handlers.caption_image,
            [image, *settings],
            viewer,
            api_name="caption_photo",
            concurrency_limit=None,
            show_progress="minimal",
        )
        # An image chosen after an address replaces it.
        image.input(None, None, address, js="() => ''", api_visibility="private")
        gr.on(
            [fetch.click, address.submit],
            handlers.caption_input,
            [image, address, *settings],
            viewer,
            api_visibility="private",
            concurrency_limit=None,
        )
    return settings


def compare_tab(handlers: Handlers) -> None:
    """One image captioned with two settings, side by side."""
    with gr.Tab("Compare"):
        gr.Markdown("One photo, captioned in two ways.")
        image = _image_input("compared")
        sides = []
        with gr.Row(equal_height=False):
            for side, defaults in (("left", DEFAULTS), ("right", Decoding("greedy"))):
                with gr.Column(min_width=300):
                    with gr.Accordion("How it writes", open=False):
                        controls = _controls(handlers.pool, defaults)
                    sides.append((controls, _viewer(f"viewer-{side}")))
        both = [control for controls, _ in sides for control in controls]
        gr.on(
            [image.change, *(control.change for control in both)],
            handlers.compare,
            [image, *both],
            [viewer for _, viewer in sides],
            api_visibility="private",
            concurrency_limit=None,
            show_progress="minimal",
        )


def batch_tab(handlers: Handlers, settings: list[Any]) -> None:
    """Many images, captioned into a table; `settings` are the controls of the first tab."""
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
            handlers.caption_many,
            [files, folder, *settings],
            [gallery, table],
            api_name="caption_many",
            concurrency_limit=2,
        )
        save.click(handlers.save_table, table, saved, api_visibility="private")


def _image_input(elem_id: str) -> gr.Image:
    """Passes on the uploaded file unopened; `gr.Image` itself would open it, and show its path if it can't."""
    image = gr.Image(
        type="filepath", sources=["upload", "clipboard", "webcam"], label="Photo", elem_id=elem_id, height=320
    )
    # Not a subclass, for which Gradio would write a .pyi file beside this one.
    image.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return image


def _viewer(elem_id: str) -> gr.HTML:
    """Shows an answer of the server, given as JSON."""
    return gr.HTML(
        "",
        html_template=(HERE / "viewer.html").read_text(),
        css_template=(HERE / "viewer.css").read_text(),
        js_on_load=(HERE / "viewer.js").read_text(),
        elem_id=elem_id,
        label="Caption",
    )


def _controls(pool: ServicePool, defaults: Decoding = DEFAULTS) -> list[Any]:
    """The checkpoint, and the fields of a `Decoding`, in their order."""

    def slider(name: str, step: float, label: str, info: str | None = None) -> gr.Slider:
        lowest, highest = FIELDS[name].metadata["bounds"]
        visible = name not in NEED_PYTORCH or has_pytorch()
        return gr.Slider(lowest, highest, getattr(defaults, name), step=step, label=label, info=info, visible=visible)

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
        gr.Radio(STRATEGIES if has_pytorch() else STRATEGIES[:-1], value=defaults.strategy, label="Search"),
        slider("num_captions", 1, "Captions"),
        slider("num_beams", 1, "Beams", "of beam search"),
        slider("temperature", 0.1, "Temperature", "of sampling"),
        slider("top_p", 0.05, "Top-p", "of sampling"),
        slider("length_penalty", 0.1, "Length penalty", "higher: longer captions"),
        slider("max_words", 1, "Words at most"),
        slider("no_repeat_ngram", 1, "No word group twice", "of this length; 0: may"),
    ]
