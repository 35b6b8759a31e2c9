"""The tabs of the page: which components there are, and which handler each event calls."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..untrusted_images import SUFFIXES
from .handlers import Handlers
from .service import Decoding, ServicePool, has_pytorch

HERE = Path(__file__).parent
STRATEGIES = [("Beam search", "beam"), ("Greedy", "greedy"), ("Sampling", "sample")]
NEED_PYTORCH = ("temperature", "top_p")
DEFAULTS = Decoding()
FIELDS = {field.name: field for field in dataclasses.fields(Decoding)}
# The page's own scripts show progress; Gradio would write "Error" over a good caption.
QUIET: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}


def one_image_tab(handlers: Handlers, examples: Sequence[Path]) -> list[Any]:
    """Adds the tab for one image with a viewer of its captions; returns the controls of checkpoint and decoding."""
    with gr.Tab("One photo"), gr.Column(elem_classes="photo-tab"):
        image = _image_input("photo")
        viewer = _viewer("viewer")
        with gr.Row(equal_height=False):
            address = gr.Textbox(
                label="Web address of a photo", placeholder="https://", elem_id="address", scale=4, max_lines=1
            )
            caption = gr.Button("Caption", variant="primary", elem_id="caption", scale=0, min_width=160)
        if examples:
            _examples(examples, image)
        with gr.Accordion("Settings", open=False):
            settings = _controls(handlers.pool)
        inputs, outputs = [image, address, *settings], [viewer, image]
        changes = [image.change, *(control.change for control in settings)]
        _connect(changes, handlers.caption_again, inputs, outputs, [viewer])
        _connect([caption.click, address.submit], handlers.caption_input, inputs, outputs, [viewer])
        image.clear(None, None, viewer, js="() => ''", api_visibility="private")
        # An image chosen after an address replaces it.
        image.input(None, None, address, js="() => ''", api_visibility="private")
    return settings


def compare_tab(handlers: Handlers) -> None:
    """Adds the tab that captions one image with two settings, side by side."""
    names = handlers.pool.names
    with gr.Tab("Compare"), gr.Column(elem_classes="photo-tab"):
        gr.Markdown("Caption a photo in two ways: with two checkpoints, or with two settings.")
        image = _image_input("compared")
        sides = []
        with gr.Row(equal_height=False):
            second = Decoding("greedy") if len(names) == 1 else DEFAULTS
            for side, checkpoint, defaults in (("Left", names[0], DEFAULTS), ("Right", names[:2][-1], second)):
                with gr.Column(min_width=300):
                    viewer = _viewer(f"viewer-{side.lower()}", side)
                    with gr.Accordion(f"{side}: settings", open=False):
                        controls = _controls(handlers.pool, defaults, checkpoint)
                    sides.append((controls, viewer))
        both = [control for controls, _ in sides for control in controls]
        viewers = [viewer for _, viewer in sides]
        changes = [image.change, *(control.change for control in both)]
        _connect(changes, handlers.compare, [image, *both], [*viewers, image], viewers)
        image.clear(None, None, viewers, js="() => ['', '']", api_visibility="private")


def batch_tab(handlers: Handlers, settings: list[Any]) -> None:
    """Adds the tab that captions many images into a grid for review; `settings` are the controls of the first tab."""
    with gr.Tab("Many photos", id="many"):
        most = handlers.limits.archive_images
        review = _component("review", "review", "Review", ENDINGS=[*SUFFIXES, ".zip"], MAX_PHOTOS=most)
        download = gr.DownloadButton("Download", elem_id="saved", visible="hidden")
        captioning = review.upload(
            handlers.caption_for_review,
            [review, *settings],
            review,
            api_visibility="private",
            concurrency_limit=2,
            concurrency_id="many",
            show_progress="hidden",
        )
        captioning.then(None, None, None, js=_dispatch("review", "ended"), api_visibility="private")
        review.stop(None, None, None, cancels=[captioning], js=_dispatch("review", "ended"), api_visibility="private")
        review.submit(handlers.save_review, review, download, **QUIET).success(
            None, None, None, js="() => document.querySelector('#saved').click()", api_visibility="private"
        )


def _connect(triggers: list[Any], handler: Any, inputs: list[Any], outputs: list[Any], viewers: list[gr.HTML]) -> None:
    """Makes triggers call a handler; its viewers are marked as busy until it succeeds or fails."""
    for viewer in viewers:
        gr.on(triggers, None, None, None, js=_dispatch(viewer.elem_id, "begun"), api_visibility="private")
    # An event during a call, such as a new photo right after clearing the last one, is handled after it.
    called = gr.on(triggers, handler, inputs, outputs, trigger_mode="always_last", **QUIET)
    for viewer in viewers:
        called.then(None, None, None, js=_dispatch(viewer.elem_id, "ended"), api_visibility="private")


def _dispatch(elem_id: str | None, event: str) -> str:
    """JavaScript that dispatches an event of this name to the script of a component."""
    return f"() => document.querySelector('#{elem_id} [data-part=root]').dispatchEvent(new CustomEvent('{event}'))"


def _image_input(elem_id: str) -> gr.Image:
    """An input that passes on the uploaded file unopened; `gr.Image` would open it, and show its path on failure."""
    image = gr.Image(
        type="filepath",
        sources=["upload", "webcam", "clipboard"],
        label="Photo",
        placeholder="# Choose a photo\nor drop or paste one anywhere on this page",
        elem_id=elem_id,
        elem_classes="photo-input",
        height=300,
    )
    # Not a subclass, for which Gradio would write a .pyi file beside this one.
    image.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return image


def _examples(paths: Sequence[Path], image: gr.Image) -> None:
    """Adds named photos to click on."""
    gallery = gr.Gallery(
        [(str(path), path.stem.replace("_", " ")) for path in paths],
        show_label=False,
        columns=len(paths),
        height="auto",
        container=False,
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="examples",
    )

    def chosen(event: gr.SelectData) -> str:
        number = event.index if isinstance(event.index, int) else 0  # a program may send anything
        return str(paths[number % len(paths)])

    gallery.select(chosen, None, image, **QUIET)


def _viewer(elem_id: str, title: str = "") -> gr.HTML:
    """A component that shows a response of the server, given as JSON."""
    return _component("viewer", elem_id, title or "Caption")


def _component(name: str, elem_id: str, label: str, **constants: Any) -> gr.HTML:
    """A custom component from its HTML, its stylesheet and its script, which reads the constants by their names."""
    html, css, script = ((HERE / f"{name}.{kind}").read_text() for kind in ("html", "css", "js"))
    given = "".join(f"const {constant} = {json.dumps(value)};\n" for constant, value in constants.items())
    return gr.HTML(
        "",
        html_template=html,
        css_template=css,
        js_on_load=(HERE / "parts.js").read_text() + given + script,
        elem_id=elem_id,
        label=label,
    )


def _controls(pool: ServicePool, defaults: Decoding = DEFAULTS, checkpoint: str = "") -> list[Any]:
    """Controls of the checkpoint and of the fields of a `Decoding`, in order."""

    def slider(name: str, step: float, label: str, info: str | None = None) -> gr.Slider:
        lowest, highest = FIELDS[name].metadata["bounds"]
        visible = name not in NEED_PYTORCH or has_pytorch()
        return gr.Slider(lowest, highest, getattr(defaults, name), step=step, label=label, info=info, visible=visible)

    return [
        gr.Dropdown(
            list(pool.names),
            value=checkpoint or pool.names[0],
            allow_custom_value=pool.any_name,
            visible=pool.any_name or len(pool.names) > 1,
            label="Checkpoint",
            info="a folder or a Hub id; only its weights and settings are read, none of its code is run"
            if pool.any_name
            else None,
        ),
        gr.Radio(
            STRATEGIES if has_pytorch() else STRATEGIES[:-1],
            value=defaults.strategy,
            label="Search",
            info="Beam search compares whole sentences, greedy takes the likeliest next word, sampling picks at random",
        ),
        slider("num_captions", 1, "Number of captions", "Greedy search gives one"),
        slider("num_beams", 1, "Beams", "Beam search: number of sentences kept at each word"),
        slider("temperature", 0.1, "Temperature", "Sampling: higher is more varied"),
        slider("top_p", 0.05, "Top-p", "Sampling: picks among the likeliest words with this total probability"),
        slider("length_penalty", 0.1, "Length penalty", "Beam search: higher favors longer captions"),
        slider("max_words", 1, "Maximum length", "In words"),
        slider(
            "no_repeat_ngram", 1, "Repeated phrases", "No phrase of this many words occurs twice; 0 allows repetition"
        ),
    ]
