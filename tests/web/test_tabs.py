"""The page's controls, without a browser."""

import json
import shutil

import pytest

from hf_gru_captioner import Captioner
from hf_gru_captioner.hub import demo_folder
from hf_gru_captioner.model import load_image
from hf_gru_captioner.web import Decoding, ServicePool, build_page
from hf_gru_captioner.web.service import STRATEGIES
from hf_gru_captioner.web.uploads import uploads

KITTEN = demo_folder() / "examples" / "kitten.jpg"
NEED_PYTORCH = {"Temperature", "Top-p"}
OTHERS = {"Number of captions", "Beams", "Length penalty", "Maximum length", "Repeated phrases"}


@pytest.fixture
def pool():
    pool = ServicePool(["shipped"], lambda name: Captioner.from_pretrained())
    yield pool
    pool.close()


@pytest.fixture
def no_pytorch(monkeypatch):
    for module in ("service", "tabs"):
        monkeypatch.setattr(f"hf_gru_captioner.web.{module}.has_pytorch", lambda: False)


def controls_of(page) -> tuple[set[str], set[str]]:
    """Labels of the sliders that are shown, and the strategies offered, on all tabs."""
    components = [(each["type"], each["props"]) for each in page.config["components"]]
    sliders = {props["label"] for kind, props in components if kind == "slider" and props["visible"]}
    return sliders, {value for kind, props in components if kind == "radio" for _, value in props["choices"]}


def test_all_settings_are_offered(pool):
    assert controls_of(build_page(pool, load_image)) == (OTHERS | NEED_PYTORCH, set(STRATEGIES))


def test_without_pytorch_only_sampling_and_its_settings_are_not_offered(pool, no_pytorch):
    assert controls_of(build_page(pool, load_image)) == (OTHERS, {"beam", "greedy"})


@pytest.mark.parametrize("strategy", ["beam", "greedy"])
def test_without_pytorch_repeated_phrases_are_allowed_or_not(pool, no_pytorch, strategy):
    """The shipped checkpoint's graphs; a service refuses what they can't do."""
    page = build_page(pool, load_image)
    caption = next(each.fn for each in page.fns.values() if each.name == "caption_input")
    path, captioner = shutil.copy(KITTEN, uploads().folder), Captioner.from_pretrained(backend="torch")
    for length in range(3):
        decoding = Decoding(strategy, no_repeat_ngram=length)
        answer = json.loads(caption(path, "", "shipped", *vars(decoding).values())[0])
        words = answer["captions"][0]["words"]
        assert words == list(captioner(KITTEN, **decoding.generation()).words)
        assert length != 1 or len(words) == len(set(words))
        assert length != 0 or words.count("a") == 2
