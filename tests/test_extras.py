"""The requirements of captioning, and the messages if more is needed, with all other packages hidden."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hf_gru_captioner.inference.backend import GRAPH_RUNTIMES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_gru_captioner"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PHOTO = ROOT / "demo" / "examples" / "dogs_lawn.jpg"

# Hides modules as if they were not installed, from transformers' search for what there is too.
HIDE = """
import importlib.util, sys

hidden = frozenset({hidden!r})

class Hider:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hider())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.partition(".")[0] in hidden else find_spec(name, *rest)
"""


def with_what_they_need(requirements):
    """Names of installed distributions: those required, and those that they require."""
    found, waiting = set(), list(map(Requirement, requirements))
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        waiting += map(Requirement, distribution(name).requires or ())
    return found


@cache
def hidden_modules():
    """Modules of all installed packages that captioning doesn't need."""
    base = with_what_they_need(PROJECT["dependencies"])
    return sorted(
        module
        for module, names in packages_distributions().items()
        if not {*map(canonicalize_name, names)} & {*base, "hf-gru-captioner"} and module.isidentifier()
    )


def run_light(code, *arguments):
    code = HIDE.format(hidden=hidden_modules()) + code
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )


def test_what_is_hidden_is_all_but_what_captioning_takes():
    hidden = hidden_modules()
    assert {"torch", "timm", "torchvision", "datasets", "accelerate", "evaluate", "gradio", "onnx"} <= set(hidden)
    assert not {"numpy", "PIL", "onnxruntime", "tokenizers", "transformers", "huggingface_hub"} & set(hidden)
    refused = run_light("import torch")
    assert "No module named 'torch'" in refused.stderr


def test_photos_are_captioned_by_what_a_plain_install_brings():
    code = "from hf_gru_captioner.cli import main; sys.exit(main(sys.argv[1:]))"
    done = run_light(code, "caption", str(PHOTO), str(PHOTO.with_name("kitten.jpg")), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    captions = [json.loads(line)["caption"] for line in done.stdout.splitlines()]
    assert len(captions) == 2
    assert all(len(caption.split()) > 3 for caption in captions)


def test_python_captions_and_draws_by_what_a_plain_install_brings():
    code = """
from hf_gru_captioner import Captioner, draw_attention
from hf_gru_captioner.model import load_image
captioner = Captioner.from_pretrained()
first, second = captioner([sys.argv[1], load_image(sys.argv[1])], num_captions=2, num_beams=2)
assert first == second
drawing = draw_attention(load_image(sys.argv[1]), first[0].words, first[0].attention)
print(drawing.width > 0, first[0].text, sorted({"torch", "transformers"} & set(sys.modules)))
"""
    done = run_light(code, str(PHOTO))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"True (\w+ ){3,}\[\]\n", done.stdout)


DOORS = {
    "cli.main(['caption', photo, '--backend', 'torch'])": "torch",
    "cli.main(['caption', photo, '--backend', 'openvino'])": "openvino",
    "cli.main(['caption', photo, '--output', without_graphs + '/a.parquet'])": "formats",
    "cli.main(['caption', photo, '--write', 'metadata'])": "metadata",
    "cli.main(['label', photo, '--output', without_graphs + '/a.csv', '--teacher', without_graphs])": "torch",
    "cli.main(['score', '--data', 'a'])": "score",
    "cli.main(['score', '--references', 'a.json', 'b.json'])": "score",
    "cli.main(['train', '--data.source', 'a', '--output-dir', 'b'])": "train",
    "cli.main(['features', '--data.source', 'a', '--output-dir', 'b'])": "train",
    "cli.main(['borrow', '--images', 'a', '--captions', 'b', '--output', 'c'])": "train",
    "cli.main(['export', '--output', 'a'])": "export",
    "cli.main(['demo'])": "demo",
    "hf_gru_captioner.GRUCaptionerConfig": "torch",
    "hf_gru_captioner.GRUCaptionerForConditionalGeneration": "torch",
    "hf_gru_captioner.GRUCaptionerProcessor": "torch",
    "hf_gru_captioner.load_captions": "train",
    "hf_gru_captioner.train": "train",
    "hf_gru_captioner.Captioner.from_pretrained(backend='torch')": "torch",
    "hf_gru_captioner.Captioner.from_pretrained(without_graphs)": "torch",
    "hf_gru_captioner.Captioner.from_pretrained().model": "torch",
    "hf_gru_captioner.Captioner.from_pretrained()(photo, do_sample=True)": "torch",
    "hf_gru_captioner.Captioner.from_pretrained().mean_log_probabilities([photo], [['a dog']])": "torch",
    "import_module('hf_gru_captioner.evaluation').score_captions": "score",
    "import_module('hf_gru_captioner.web')": "demo",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The message of each entry point, in a single process."""
    without_graphs = tmp_path_factory.mktemp("checkpoint")
    for path in (PACKAGE / "pretrained").iterdir():
        if path.is_file():
            (without_graphs / path.name).symlink_to(path.resolve())
    code = f"""
import contextlib, io, json, warnings
from importlib import import_module
import hf_gru_captioner
from hf_gru_captioner import cli
photo, without_graphs = sys.argv[1:]
said = {{}}
for door in {list(DOORS)!r}:
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream):
        try:
            returned = eval(door)
            said[door] = f"returned {{returned}}: " + stream.getvalue()
        except BaseException as error:
            said[door] = f"{{type(error).__name__}}: {{error}}"
print(json.dumps(said))
"""
    done = run_light(code, str(PHOTO), str(without_graphs))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("door", "extra"), DOORS.items())
def test_what_needs_more_says_so_in_one_line_with_the_command(answers, door, extra):
    said = answers[door]
    command = re.escape(f"install -e '{ROOT}[{extra}]'")
    begins = r"returned 2: (loading .*\n)?gru-captioner: " if door.startswith("cli") else "MissingExtraError: "
    assert re.fullmatch(rf"{begins}\w+ is not installed: \S+ (-m pip )?{command}\n?", said), said


def extras_named():
    """Extras named in calls of needs_extra() and install_command()."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("needs_extra", "install_command"):
                for each in ast.walk(node.args[0]):
                    if isinstance(each, ast.Constant) and isinstance(each.value, str):
                        yield each.value


def test_every_extra_that_is_named_exists():
    named = {*extras_named()}
    assert {"torch", "score", "train", "export", "demo"} <= named <= EXTRAS.keys()
    brought = with_what_they_need(PROJECT["dependencies"])
    for name, runtime in GRAPH_RUNTIMES.items():
        assert runtime.extra in EXTRAS if runtime.extra else canonicalize_name(name) in brought
    pages = "\n".join(path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile"])
    told = {each for names in re.findall(r'"\.\[([a-z,]+)\]"', pages) for each in names.split(",")}
    assert {"torch", "train", "demo"} <= told <= EXTRAS.keys()
    table = (ROOT / "README.md").read_text().partition("| extra | for |")[2].partition("\n\n")[0]
    of_rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    assert sorted(re.findall(r"`(\w+)`", " ".join(of_rows))) == sorted(EXTRAS)


def test_nothing_is_said_to_be_in_an_index():
    pages = [*ROOT.glob("*.md"), *ROOT.rglob("docs/*.md"), *ROOT.glob("demo/*.md"), *PACKAGE.rglob("*.py")]
    assert not [path for path in pages if re.search(r"pip install \S*hf_gru_captioner", path.read_text())]


def test_everything_of_the_field_that_it_is_built_on_is_required_by_name():
    of_extras = [each for name in EXTRAS if name != "dev" for each in EXTRAS[name]]
    required = {canonicalize_name(Requirement(each).name) for each in [*PROJECT["dependencies"], *of_extras]}
    field = "transformers datasets torch accelerate evaluate huggingface-hub safetensors gradio"
    assert set(field.split()) <= required
    assert "torch" not in with_what_they_need(PROJECT["dependencies"])
