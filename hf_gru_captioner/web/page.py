"""The page: captions an image and explains the caption, compares two ways of captioning, or captions many images.

The browser (`viewer.js`) shows attention and alternatives from one response. Programs have typed endpoints (`api`).
Input is checked in `untrusted_images`, `uploads`, `body_limit` and `routes`; callers share `service`.
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
from .uploads import LOCAL_LIMITS, is_loopback, uploads

MAX_WAITING = 64  # callers in the queue
MAX_SESSIONS = 64  # of which Gradio keeps the last responses
HERE = Path(__file__).parent
TITLE = "Photo captions"
FONTS = ("system-ui", "sans-serif")  # none is downloaded


def build_page(
    pool: ServicePool,
    load_image: LoadImage,
    *,
    examples: Sequence[Path] = (),
    limits: Limits = LIMITS,
    about: str = "",
    train_from: Callable[[str], str | None] = lambda name: None,
) -> gr.Blocks:
    """Builds the page as `gr.Blocks`.

    Args:
        pool: Captions images.
        load_image: Loads an image, upright and RGB.
        examples: Images to click on.
        limits: Limits on what visitors may send.
        about: The model's training data and terms of use, in Markdown.
        train_from: Maps a checkpoint's name to its path in the command that trains on corrections, quoted for a shell;
            None for the shipped one.
    """
    uploads()  # before the first component reads where they are stored
    handlers = Handlers(pool, load_image, limits, train_from)
    # No delete_cache: `uploads` deletes old files, and Gradio would delete the examples of one page with another.
    with _Page(title="GRU captioner", analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\n{about}", elem_id="about")
        settings = one_image_tab(handlers, examples)
        compare_tab(handlers)
        batch_tab(handlers, settings)
        add_endpoints(handlers)
    return page


def serve(pool: ServicePool, load_image: LoadImage, *, host: str, port: int | None, **page_options) -> None:
    """Serves the page until interrupted, after a warm-up caption so that the first visitor needn't wait.

    `page_options` are further arguments of [`build_page`].
    """
    limit_arenas()  # before torch starts its threads
    pool[pool.names[0]](Image.new("RGB", (224, 224), "grey"))
    page = build_page(pool, load_image, **page_options)
    launch(page, server_name=host, server_port=port)
    print(f"{page.local_url}  (Ctrl+C to stop)", flush=True)
    page.block_thread()


def launch(page: gr.Blocks, **server) -> None:
    """Starts serving, with limits on waiting callers and uploads, and without share link, monitoring or footer.

    A page on a loopback address lets visitors on this machine upload more ([`LOCAL_LIMITS`]).
    """
    limit_arenas()
    uploads().keep_present()
    # A visitor whom a proxy on this machine names is not on this machine, and keeps to the usual limits.
    uploads().local_limits = LOCAL_LIMITS if is_loopback(server.get("server_name") or "") else None
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
        # Not as css, whose selectors Gradio would restrict to elements in its container.
        head=f"<style>{(HERE / 'page.css').read_text()}</style>",
        js=(HERE / "page.js").read_text().replace("SUFFIXES", json.dumps(SUFFIXES)),
        ssr_mode=False,  # server-side rendering is a second server that would bypass the middleware
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
    """Gradio's own theme, with sufficient color contrast."""
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
        for paths in self.temp_file_sets:  # of every file received or sent, for deleting them, which `uploads` does
            paths.clear()
        state = _EmptyState()
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)


class _EmptyState:
    """Replaces a session's state while inputs are processed.

    Gradio would keep every image sent as text, and would use components as changed by the session, not as checked here.
    """

    def __contains__(self, key: int) -> bool:
        return False

    def __setitem__(self, key: int, value: Any) -> None:
        pass

    def _update_value_in_config(self, key: int, value: Any) -> None:
        pass
