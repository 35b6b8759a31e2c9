"""The page: caption an image and look into the caption, compare two ways of captioning it, or caption many images.

The browser (`viewer.js`) shows attention and alternatives from one answer of the server. Programs have typed endpoints
(`api`). Input is checked in `untrusted_images`, `uploads`, `body_limit` and `routes`; callers share `service`.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

from ..untrusted_images import LIMITS, SUFFIXES, Limits
from .answers import as_sentences
from .api import add_endpoints
from .body_limit import BodyLimit
from .handlers import Handlers, LoadImage
from .heap import limit_arenas
from .queueing import NoSuchSession, outlive_clients
from .routes import MAX_CONNECTIONS, RouteFilter, with_timeouts
from .service import ServicePool
from .tabs import batch_tab, compare_tab, one_image_tab
from .uploads import uploads

MAX_WAITING = 64  # callers
MAX_SESSIONS = 64  # whose last answers Gradio remembers
HERE = Path(__file__).parent
TITLE = "Photo captions"
FONTS = ("system-ui", "sans-serif")  # none is fetched


def build_page(
    pool: ServicePool,
    load_image: LoadImage,
    *,
    examples: Sequence[Path] = (),
    limits: Limits = LIMITS,
    about: str = "",
    train_from: Callable[[str], str | None] = lambda name: None,
) -> gr.Blocks:
    """The page as `gr.Blocks`.

    Args:
        pool: Captions images.
        load_image: Makes an image upright and RGB.
        examples: Images to click on.
        limits: What visitors may send.
        about: What the model has learned from, and its terms, in Markdown.
        train_from: Name -> the checkpoint as a word of the command that trains on corrections of its captions; None for
            the shipped one.
    """
    uploads()  # before the first component asks where they are to be
    handlers = Handlers(pool, load_image, limits, train_from)
    # No delete_cache: `uploads` deletes what is old, and Gradio would delete the examples of one page with another.
    with _Page(title="GRU captioner", analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\n{about}", elem_id="about")
        settings = one_image_tab(handlers, examples)
        compare_tab(handlers)
        batch_tab(handlers, settings)
        add_endpoints(handlers)
    return page


def serve(pool: ServicePool, load_image: LoadImage, *, host: str, port: int | None, **shown) -> None:
    """Serve the page until interrupted; the model captions once before, so that the first visitor needn't wait.

    `shown` is what [`build_page`] takes.
    """
    limit_arenas()  # before torch has its threads, too
    pool[pool.names[0]](Image.new("RGB", (224, 224), "grey"))
    page = build_page(pool, load_image, **shown)
    launch(page, server_name=host, server_port=port)
    print(f"{page.local_url}  (Ctrl+C ends)", flush=True)
    page.block_thread()


def launch(page: gr.Blocks, **server) -> None:
    """Start to serve, with limits on waiting callers and uploads; without share link, monitoring or footer."""
    limit_arenas()
    uploads().keep_present()
    page.queue(max_size=MAX_WAITING, api_open=False)  # every call goes through the queue
    outlive_clients(page)
    page.launch(
        max_file_size=LIMITS.file_bytes,
        app_kwargs={
            "middleware": [
                Middleware(RouteFilter, uploads=uploads()),
                Middleware(BodyLimit, limit=LIMITS.text_bytes, uploads=uploads()),
                Middleware(NoSuchSession),
            ]
        },
        state_session_capacity=MAX_SESSIONS,
        share=False,
        theme=_theme(),
        # Not as css, whose selectors Gradio would make those of elements within its container.
        head=f"<style>{(HERE / 'page.css').read_text()}</style>",
        js=(HERE / "page.js").read_text().replace("SUFFIXES", json.dumps(SUFFIXES)),
        ssr_mode=False,  # a second server in front of this one, which would bypass the middleware
        enable_monitoring=False,
        footer_links=[],
        quiet=True,
        prevent_thread_lock=True,
        **server,
    )
    config: Any = page.server.config  # read for each connection
    config.http_protocol_class = with_timeouts(config.http_protocol_class)
    config.limit_concurrency = MAX_CONNECTIONS


def _theme() -> gr.themes.Base:
    """Gradio's own, with colors whose contrast suffices."""
    theme = gr.themes.Default(primary_hue=gr.themes.colors.blue, font=FONTS)
    return theme.set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        color_accent="*primary_600",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )


class _Page(gr.Blocks):
    """Checks every path in a request, whichever component or endpoint it is for, before Gradio reads it."""

    async def preprocess_data(self, block_fn, inputs, state, explicit_call=False):
        with as_sentences():
            await anyio.to_thread.run_sync(uploads().check_all, inputs)
        for paths in self.temp_file_sets:  # of every file that came or went, for a deletion that `uploads` does
            paths.clear()
        state = _EmptyState()
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)


class _EmptyState:
    """Replaces a session's state while inputs are processed: Gradio would keep every image that came as text, and would
    use components as the session has changed them, which are not those that were checked here."""

    def __contains__(self, key: int) -> bool:
        return False

    def __setitem__(self, key: int, value: Any) -> None:
        pass

    def _update_value_in_config(self, key: int, value: Any) -> None:
        pass
