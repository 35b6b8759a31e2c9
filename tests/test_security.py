"""Promises of SECURITY.md about the code itself."""

import ast
import json
from pathlib import Path

import pytest

import hf_gru_captioner
from hf_gru_captioner import Captioner
from hf_gru_captioner.cli import main

PACKAGE = Path(hf_gru_captioner.__file__).parent
ROOT = PACKAGE.parent
UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "np.load",
    "numpy.load",
    "os.popen",
    "os.system",
    "torch.load",
    "torch.save",
    "yaml.full_load",
    "yaml.load",
    "yaml.unsafe_load",
}


def unsafe_things(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & UNSAFE_MODULES
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} & UNSAFE_MODULES
        elif isinstance(node, ast.Call):
            found |= {ast.unparse(node.func)} & UNSAFE_CALLS
            found |= {
                f"{each.arg}=True"
                for each in node.keywords
                if each.arg in ("shell", "allow_pickle") and isinstance(each.value, ast.Constant) and each.value.value
            }
    return found


@pytest.mark.parametrize(
    "path",
    [path for room in ("hf_gru_captioner", "scripts", "demo") for path in sorted((ROOT / room).rglob("*.py"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_file_unpickles_evaluates_or_starts_a_shell(path):
    assert unsafe_things(path.read_text()) == set()


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from shelve import open", "torch.load(x)", "yaml.load(text)", "run(x, shell=True)", "eval(x)"],
)
def test_what_is_unsafe_is_noticed(source):
    assert unsafe_things(source)


def test_the_code_of_a_checkpoint_does_not_run_here(checkpoint, photo, tmp_path):
    """Only AutoModel with trust_remote_code=True runs it; Captioner reads weights and settings."""
    for file in checkpoint.glob("*.py"):
        file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"]["AutoConfig"] = "configuration_gru_captioner.GRUCaptionerConfig"
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert Captioner.from_pretrained(checkpoint)(photo).text is not None
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("failure", [500, 403, "cut", None])
def test_a_token_is_never_shown(hub, checkpoint, capsys, caplog, monkeypatch, failure):
    monkeypatch.setenv("GRU_CAPTIONER_DEBUG", "")
    if failure is not None:
        hub.fail(".*", failure, times=200)
    code = main(["push", str(checkpoint), "me/captioner", "--license", "mit"])
    assert code == (0 if failure is None else 2)
    output = capsys.readouterr()
    assert "hf_write" not in output.out + output.err + caplog.text
    assert not [path for path in checkpoint.rglob("*") if path.is_file() and b"hf_write" in path.read_bytes()]
