import ast
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports

import hf_gru_captioner

PACKAGE = Path(hf_gru_captioner.__file__).parent

# Who may import whom, by room. A module not named here may import nothing of ours.
MAY_IMPORT = {
    # but for errors only for type checkers
    "__init__": {"captioner", "data", "errors", "model", "tokenization", "training", "visualization"},
    "captioner": {"checkpoint", "checkpoint_limits", "errors", "files", "inference", "model"},
    "checkpoint": {"checkpoint_limits", "errors", "files", "hub", "inference", "model"},  # of hub how it is fetched
    "checkpoint_limits": {"files", "tokenization"},
    "coco": {"untrusted_images"},
    "label_names": {"errors"},
    "data": {
        "coco",
        "errors",
        "files",
        "label_names",
        "model",
        "untrusted_images",
    },  # of model image loading, its limits
    "evaluation": {"coco", "errors", "files", "label_names", "untrusted_images"},
    "hub": {"errors", "evaluation", "files"},  # of evaluation the registry of metrics, which is light
    "inference": {"captioner", "checkpoint_limits", "errors", "files", "model"},  # captioner only for type checkers
    "labelling": {
        "captioner",
        "checkpoint",
        "checkpoint_limits",
        "errors",
        "files",
        "hub",
        "inference",
        "library",
        "model",
    },  # of library how a photo's version is told, of model image loading
    "library": {"errors", "files", "model", "untrusted_images"},  # of model what it says of formats
    "tokenization": {"evaluation"},  # of it the writing systems, which is light
    "scoring_run": {
        "captioner",
        "data",
        "errors",
        "evaluation",
        "files",
        "hub",
        "inference",
        "label_names",
        "visualization",
    },
    "training": {
        "captioner",
        "checkpoint",
        "checkpoint_limits",
        "data",
        "errors",
        "evaluation",
        "files",
        "hub",
        "inference",
        "label_names",
        "model",
        "tokenization",
        "visualization",
    },
    "raw_photos": {"model"},
    "visualization": {"model"},
    "untrusted_images": {"model", "raw_photos"},  # image loading, which travels and so is below all others
    "web": {"captioner", "errors", "inference", "model", "tokenization", "untrusted_images"},
    "cli": {
        "captioner",
        "checkpoint",
        "checkpoint_limits",
        "data",
        "errors",
        "evaluation",
        "files",
        "hub",
        "inference",
        "label_names",
        "labelling",
        "library",
        "model",
        "scoring_run",
        "training",
        "untrusted_images",
        "visualization",
        "web",
    },
}
ROOMS = sorted(
    {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")} - {"pretrained"}
)


def modules_of(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py")) if (PACKAGE / room).is_dir() else [PACKAGE / f"{room}.py"]


def imports_of(path: Path) -> set[str]:
    """Our modules that a file imports, as dotted names below the package."""
    found = set()
    folder = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1]
            names = (
                [node.module] if node.module else [alias.name for alias in node.names if alias.name != "__version__"]
            )
            found |= {".".join([*base, name]) for name in names}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not [name for name in names if name.split(".")[0] in ("scripts", "demo", "tests")], path
            found |= {name.partition(".")[2] for name in names if name.split(".")[0] == "hf_gru_captioner"}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_it_may(room):
    for path in modules_of(room):
        rooms = {name.split(".")[0] for name in imports_of(path)} - {room}
        assert rooms <= MAY_IMPORT.get(room, set()), f"{path.name} imports {rooms}"


def test_the_room_that_travels_imports_nothing_but_siblings():
    siblings = {path.stem for path in (PACKAGE / "model").glob("*.py")}
    for path in (PACKAGE / "model").glob("*.py"):
        for name in imports_of(path):
            room, _, module = name.partition(".")
            assert room == "model", path
            assert module in siblings, path


def test_the_room_that_travels_needs_only_what_a_plain_install_brings():
    """transformers rejects a checkpoint whose code imports, anywhere, a package that is not installed."""
    brought = {"PIL", "huggingface_hub", "numpy", "torch", "transformers", *sys.stdlib_module_names}
    for path in (PACKAGE / "model").glob("*.py"):
        assert {name.split(".")[0] for name in get_imports(path)} <= brought, path


def test_a_forbidden_import_is_noticed(tmp_path):
    intruder = PACKAGE / "data" / "intruder.py"  # never written: only its place matters
    tree = "from ..model import load_image\nfrom .collator import CaptionCollator\nimport hf_gru_captioner.training\n"
    path = tmp_path / "intruder.py"
    path.write_text(tree)

    class Placed(type(path)):
        def relative_to(self, *_):
            return intruder.relative_to(PACKAGE)

    assert imports_of(Placed(path)) == {"model", "data.collator", "training"}


def test_public_names_are_sorted_and_all_there():
    assert sorted(hf_gru_captioner.__all__) == hf_gru_captioner.__all__
    for name in hf_gru_captioner.__all__:
        assert getattr(hf_gru_captioner, name).__name__ == name
        assert name in dir(hf_gru_captioner)
    with pytest.raises(AttributeError, match="no attribute 'Captionner'"):
        _ = hf_gru_captioner.Captionner


def test_importing_the_package_and_asking_for_help_load_nothing_heavy():
    code = (
        "import sys, hf_gru_captioner.cli\n"
        "try: hf_gru_captioner.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "loaded = sorted({'torch', 'transformers', 'datasets', 'numpy', 'PIL'} & set(sys.modules))\n"
        "print(loaded, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "caption" in done.stdout


def test_hub_imports_only_the_registry_of_evaluation_and_the_registry_needs_no_extra():
    for path in modules_of("hub"):
        of_evaluation = {name for name in imports_of(path) if name.startswith("evaluation")}
        assert of_evaluation <= {"evaluation.metrics"}, path
    code = (
        "import sys; from hf_gru_captioner.evaluation.metrics import METRICS\n"
        "print(sorted({'datasets', 'evaluate', 'numpy', 'torch'} & set(sys.modules)), len(METRICS))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded, _, number = output.strip().rpartition(" ")
    assert (loaded, int(number) > 0) == ("[]", True)


def test_type_checkers_are_told_that_the_package_is_typed():
    assert (PACKAGE / "py.typed").exists()
