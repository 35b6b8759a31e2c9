import json
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest

from hf_gru_captioner import errors
from hf_gru_captioner.errors import (
    MissingExtraError,
    UsageError,
    counted,
    install_command,
    listed,
    needs_extra,
    one_line,
    reason_of,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture
def active(monkeypatch):
    """Puts this Python's pip first on the PATH."""
    monkeypatch.setattr(shutil, "which", lambda name: str(Path(sys.executable).with_name(name)))


def test_a_missing_package_is_named_with_the_command_that_brings_it(active):
    said = f"no_such_package is not installed: pip install -e '{ROOT}[x]'"
    with pytest.raises(MissingExtraError) as refused, needs_extra("x"):
        import no_such_package.inside  # noqa: F401
    assert str(refused.value) == said


def test_the_extra_that_is_named_deepest_counts(active):
    with pytest.raises(MissingExtraError, match=r"\[inner\]'$"), needs_extra("outer"), needs_extra("inner"):
        import no_such_package  # noqa: F401


def test_a_missing_module_of_our_own_is_our_mistake():
    with pytest.raises(ModuleNotFoundError, match="no_such_room"), needs_extra("x"):
        import hf_gru_captioner.no_such_room  # noqa: F401


GIT = {"url": "https://host/a.git", "vcs_info": {"vcs": "git", "commit_id": "1"}}


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        (None, "'hf_gru_captioner[x]'"),  # an index's
        ({"url": "file:///a%20b/clone", "dir_info": {}}, "'/a b/clone[x]'"),
        ({"url": "file:///a/hf.whl", "archive_info": {}}, "'/a/hf.whl[x]'"),
        (GIT, "'hf_gru_captioner[x] @ git+https://host/a.git'"),
        ({"url": "https://host/hf.whl", "archive_info": {}}, "'hf_gru_captioner[x] @ https://host/hf.whl'"),
    ],
)
def test_an_installation_is_told_to_install_from_where_it_came(active, monkeypatch, tmp_path, origin, wanted):
    installed = tmp_path / "site-packages"
    information = installed / "hf_gru_captioner-1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.4\nName: hf_gru_captioner\nVersion: 1\n")
    if origin is not None:
        (information / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.setattr(errors, "__file__", str(installed / "hf_gru_captioner" / "errors.py"))
    monkeypatch.setattr(metadata, "distribution", lambda _: metadata.PathDistribution(information))
    assert install_command("x") == f"pip install {wanted}"


def test_where_nothing_is_installed_the_command_is_that_of_an_index(active, monkeypatch, tmp_path):
    def distribution(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(errors, "__file__", str(tmp_path / "hf_gru_captioner" / "errors.py"))
    monkeypatch.setattr(metadata, "distribution", distribution)
    assert install_command("x") == "pip install 'hf_gru_captioner[x]'"


def test_outside_of_its_environment_the_command_names_its_python(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/pip")
    assert install_command("x") == f"{sys.executable} -m pip install -e '{ROOT}[x]'"


def test_a_missing_extra_is_a_usage_error_and_an_import_error():
    assert issubclass(MissingExtraError, UsageError)
    assert issubclass(MissingExtraError, ImportError)


def test_other_errors_go_through():
    with pytest.raises(ZeroDivisionError), needs_extra("x"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("number", "phrase"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (12_345, "12,345 images")]
)
def test_a_count_has_its_noun_in_the_right_number(number, phrase):
    assert counted(number, "image") == phrase


def test_a_plural_that_an_s_does_not_make_is_given():
    assert [counted(number, "row has", "rows have") for number in (1, 2)] == ["1 row has", "2 rows have"]


@pytest.mark.parametrize(
    ("names", "phrase"),
    [([], ""), (["a", "b"], "a, b"), (["a", "b", "c"], "a, b and 1 more"), (dict.fromkeys("abcd"), "a, b and 2 more")],
)
def test_a_long_list_ends_in_the_number_of_others(names, phrase):
    assert listed(names, 2) == phrase
    assert listed([str(each) for each in range(2_000)], 1, "; ") == "0 and 1,999 more"


def test_an_error_is_one_line_without_what_steers_a_terminal():
    assert one_line(ValueError("a\n  b\t\x1b[31mred")) == "a b \\x1b[31mred"


def test_a_reason_has_its_kind_and_is_short():
    assert reason_of(KeyError("a" * 1000)) == "KeyError: '" + "a" * 299
