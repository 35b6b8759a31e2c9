"""Tiny captioners with random weights, and generated photos. No test accesses the network."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: a test that would download must fail at once

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from datasets import Image as ImageFeature
from huggingface_hub import constants
from PIL import Image
from transformers import AutoModel, CLIPImageProcessor, TimmWrapperConfig

from hf_gru_captioner.model import (
    GRUCaptionerConfig,
    GRUCaptionerForConditionalGeneration,
    GRUCaptionerProcessor,
)
from hf_gru_captioner.tokenization import build_tokenizer, special_token_ids

_spec = importlib.util.spec_from_file_location("loopback_hub", Path(__file__).parent / "support" / "loopback_hub.py")
loopback_hub = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(loopback_hub)

torch.set_num_threads(1)  # the tests' matrices are small; more threads only wait for each other

CAPTIONS = (
    "A brown dog runs through the grass .",
    "Two children play on the beach .",
    "The man's bike isn't red , it is blue .",
    "A girl in a pink T-shirt jumps .",
)
IMAGE_SIZE = 96  # pixels; the tiny encoder makes 3x3 regions of it


@pytest.fixture(autouse=True)
def no_graphs(request, monkeypatch):
    """Disables graph export, which takes ten seconds, in training and pushing, except in marked tests."""
    if "writes_graphs" not in request.keywords:
        monkeypatch.setattr("hf_gru_captioner.training.checkpoints.CheckpointGraphs._export", lambda *_: {})
        monkeypatch.setattr("hf_gru_captioner.cli.push.ensure_graphs", lambda checkpoint: None)


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer(CAPTIONS, min_count=1)


@pytest.fixture(scope="session")
def processor(tokenizer):
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return GRUCaptionerProcessor(CLIPImageProcessor(size=size, do_center_crop=False), tokenizer)


@pytest.fixture(scope="session")
def make_model(tokenizer):
    """Makes a tiny captioner; keywords are fields of its configuration."""

    def make(seed: int = 0, **overrides) -> GRUCaptionerForConditionalGeneration:
        torch.manual_seed(seed)
        fields = {
            "encoder_config": TimmWrapperConfig(architecture="test_resnet", do_pooling=False),
            "embedding_size": 12,
            "hidden_size": 16,
            "num_attention_heads": 2,
            **special_token_ids(tokenizer),
            **overrides,
        }
        model = GRUCaptionerForConditionalGeneration(GRUCaptionerConfig(**fields))
        if "encoder_config" not in overrides:
            calibrate_batch_norm(model.encoder.vision.backbone)
        return model.eval()

    return make


def calibrate_batch_norm(backbone) -> None:
    """Sets BatchNorm statistics to match random weights; without them, all images give the same outputs."""
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean of all batches, here one
            module.reset_running_stats()
    with torch.no_grad():
        backbone.train()(torch.randn(8, 3, IMAGE_SIZE, IMAGE_SIZE))


@pytest.fixture
def save_encoder():
    """Saves a tiny vision encoder with random weights to a folder."""

    def save(folder: Path) -> None:
        settings = {"input_size": [3, IMAGE_SIZE, IMAGE_SIZE], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
        config = TimmWrapperConfig(architecture="test_resnet", do_pooling=False, pretrained_cfg=settings)
        AutoModel.from_config(config).save_pretrained(folder)

    return save


@pytest.fixture(scope="session")
def draw_weights():
    """Reinitializes a model's weights identically in every release of transformers, which differ in order."""

    def draw(model: GRUCaptionerForConditionalGeneration, seed: int) -> GRUCaptionerForConditionalGeneration:
        torch.manual_seed(seed)
        with torch.no_grad():
            for _, weight in sorted(model.named_parameters()):
                if weight.ndim > 1:
                    weight.normal_(std=weight[0].numel() ** -0.5)
        calibrate_batch_norm(model.encoder.vision.backbone)
        return model.eval()

    return draw


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def checkpoint(model, processor, tmp_path):
    """Folder of a complete tiny checkpoint."""
    folder = tmp_path / "checkpoint"
    model.generation_config.update(max_new_tokens=6, num_beams=2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def make_photo():
    """Makes a photo-like picture: a smooth color gradient with noise."""

    def make(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
        random = np.random.default_rng(seed)
        corners = random.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        return Image.fromarray((smooth + random.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8))

    return make


@pytest.fixture
def photo(make_photo) -> Image.Image:
    return make_photo()


@pytest.fixture(autouse=True)
def forget_precision():
    """Resets Accelerate's precision after each test: it is per process, and "auto" may have chosen bf16."""
    yield
    if (state := sys.modules.get("accelerate.state")) is not None:
        state.AcceleratorState._reset_state()


@pytest.fixture
def make_dataset(make_photo):
    """Makes an in-memory dataset of `size` photos with two captions each, as returned by `load_captions`."""

    def make(size: int = 4) -> Dataset:
        rows = {
            "image": [make_photo(seed) for seed in range(size)],
            "captions": [[CAPTIONS[seed % 4], CAPTIONS[(seed + 1) % 4]] for seed in range(size)],
            "image_id": [str(seed) for seed in range(size)],
            "image_digest": [f"digest of {seed}" for seed in range(size)],
        }
        text = Value("string")
        features = {"image": ImageFeature(), "captions": List(text), "image_id": text, "image_digest": text}
        return Dataset.from_dict(rows, features=Features(features))

    return make


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A loopback Hub that this process's client uses, with write permission."""
    with loopback_hub.LoopbackHub() as hub:
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "no-tokens"))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its retries
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        yield hub


@pytest.fixture
def run_plainly(tmp_path):
    """Runs code without this package but with its dependencies; the last line it prints is the result as JSON."""

    def run(code: str, *arguments, home: str = "home", **environment: str):
        standard = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path / home),
            "HF_HOME": str(tmp_path / home),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        # -S leaves out the editable install; the libraries' folder is put back by hand
        libraries = [path for path in sys.path if path.endswith("site-packages")]
        none_of_ours = "assert not [name for name in sys.modules if name.split('.')[0] == 'hf_gru_captioner']"
        process = subprocess.run(
            [sys.executable, "-S", "-c", f"import sys; sys.path[1:1] = {libraries!r}\n{code}\n{none_of_ours}"]
            + [str(argument) for argument in arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=standard | environment,
        )
        assert process.returncode == 0, process.stderr[-3000:]
        return json.loads(process.stdout.splitlines()[-1])

    return run


@pytest.fixture
def dataset_folder(make_dataset, tmp_path):
    """A folder of parquet files: six training images, three validation images."""
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for split, size in (("train", 6), ("validation", 3)):
        rows = make_dataset(size).select_columns(["image", "captions"])
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="session")
def write_dng():
    """Writes a camera's raw file: path, thumbnail, preview or None, orientation."""
    path = Path(__file__).parent / "support" / "raw_photo.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_dng
