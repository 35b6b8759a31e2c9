"""A running page and a real browser. Screenshots are saved in tests/screenshots/."""

import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from hf_gru_captioner import Captioner
from hf_gru_captioner.checkpoint import SHIPPED_CHECKPOINT
from hf_gru_captioner.hub import about_checkpoint, example_images
from hf_gru_captioner.model import load_image
from hf_gru_captioner.web import ServicePool, build_page, launch

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

SCREENSHOTS = Path(__file__).parents[1] / "screenshots"


@pytest.fixture(scope="session")
def address():
    """Address of a page with the shipped checkpoint under two names."""
    pool = ServicePool(["shipped", "again"], lambda name: Captioner.from_pretrained())
    page = build_page(
        pool,
        load_image,
        examples=example_images(),
        about=about_checkpoint(SHIPPED_CHECKPOINT, "shipped"),
        train_from={"shipped": None, "again": "'runs/<again> & again'"}.get,
    )
    launch(page, server_name="127.0.0.1")
    yield page.local_url
    page.close()


@pytest.fixture(scope="session")
def browser():
    """The system's Chromium, or Playwright's own; `make test` ensures that there is one."""
    of_system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=of_system, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page as a visitor; keywords are those of Playwright's new_context().

    No error may be on its console, and nothing may be asked of another server.
    """
    contexts, errors = [], []

    def visit(path="", **settings):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("request", lambda request: outside(request.url))
        page.goto(address + path)
        page.wait_for_selector("#photo input[type=file]", state="attached")
        return page

    def outside(url):
        if not url.startswith((address, "data:", "blob:")):
            errors.append(f"asked {url}")

    yield visit
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture
def look(request):
    """Saves a screenshot of a page under the test's name."""

    def look(page, name=""):
        SCREENSHOTS.mkdir(exist_ok=True)
        page.wait_for_timeout(800)  # words appear one by one
        page.screenshot(path=SCREENSHOTS / f"{request.node.name}{name}.png", full_page=True)

    return look
