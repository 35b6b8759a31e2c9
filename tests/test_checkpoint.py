"""Loading of checkpoints and pretrained encoders: safetensors only, one commit, matching sizes."""

import json

import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi
from safetensors.torch import load_file, save_file
from transformers import AutoModel, TimmWrapperConfig, ViTConfig

from hf_gru_captioner import checkpoint
from hf_gru_captioner.checkpoint import SHIPPED_CHECKPOINT, Source, encoder_folder, load_checkpoint
from hf_gru_captioner.hub import push


@pytest.fixture
def encoder(tmp_path):
    """Folder of a tiny encoder."""
    settings = {"input_size": [3, 96, 96], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    config = TimmWrapperConfig(architecture="test_resnet", do_pooling=False, pretrained_cfg=settings)
    AutoModel.from_config(config).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def name_pickles_in_the_index(folder):
    pickle_weights(folder)
    index = {"metadata": {}, "weight_map": {"timm_model.conv1.weight": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def change_config(folder, **settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def drop_weights(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({name: weights[name] for name in list(weights)[:3]}, folder / "model.safetensors", {"format": "pt"})


DAMAGES = {
    "pickled weights": (pickle_weights, "no safetensors weights, and other formats are not loaded: a pickle"),
    "an index of pickles": (name_pickles_in_the_index, "no safetensors weights, and other formats are not loaded"),
    "most weights missing": (drop_weights, "lack most of its weights"),
    "torn weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"torn"), "is damaged or its files"),
    "too many layers": (lambda folder: change_config(folder, num_hidden_layers=10**9), "is more than 1,000"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), r"it has no config\.json"),
    "a torn configuration": (
        lambda folder: (folder / "config.json").write_text("{"),
        r"its config\.json can't be read",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_safe_and_whole_encoder_is_refused(encoder, damage):
    change, said = DAMAGES[damage]
    assert encoder_folder(Source(str(encoder))) == encoder
    change(encoder)
    with pytest.raises(ValueError, match=said):
        encoder_folder(Source(str(encoder)))


def test_weights_in_several_files_are_taken(tmp_path):
    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32)
    AutoModel.from_config(config).save_pretrained(tmp_path / "vit", max_shard_size="20KB")
    assert len(list((tmp_path / "vit").glob("*.safetensors"))) > 1
    assert encoder_folder(Source(str(tmp_path / "vit"))) == tmp_path / "vit"


def test_of_the_hub_one_commit_is_fetched_and_no_pickle(hub, encoder):
    files = {path.name: path.read_bytes() for path in encoder.iterdir()}
    first = push({**files, "pytorch_model.bin": b"pickle"}, "me/encoder", message="first")
    later = [CommitOperationAdd("model.safetensors", b"other")]
    HfApi().create_commit("me/encoder", later, commit_message="second")
    folder = encoder_folder(Source("me/encoder", revision=first.revision))
    assert folder.name == first.revision
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_a_hub_repository_of_pickles_is_refused_and_none_is_fetched(hub, encoder):
    pickle_weights(encoder)
    push({path.name: path.read_bytes() for path in encoder.iterdir()}, "me/encoder", message="first")
    hub.requests.clear()
    with pytest.raises(ValueError, match="the encoder me/encoder has no safetensors weights"):
        encoder_folder(Source("me/encoder"))
    assert not [path for _, path, _ in hub.requests if path.endswith(".bin")]


def test_nothing_of_that_name_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder nor"):
        encoder_folder(Source(str(tmp_path / "nowhere")))


def test_a_processor_that_was_loaded_is_saved_as_it_was(tmp_path):
    _, processor = load_checkpoint(Source(str(SHIPPED_CHECKPOINT)))
    processor.save_pretrained(tmp_path)
    for name in ("tokenizer_config.json", "processor_config.json"):
        saved, shipped = (json.loads((folder / name).read_text()) for folder in (tmp_path, SHIPPED_CHECKPOINT))
        assert saved | {"auto_map": None} == shipped | {"auto_map": None}


def test_an_encoder_whose_regions_have_another_width_is_refused_by_name(make_model, processor):
    vision = checkpoint._on_meta_device(make_model().config).encoder.vision
    checkpoint._check_cost(vision, (96, 96))
    vision.region_size += 1
    with pytest.raises(ValueError, match=r"test_resnet can't be the vision encoder: its regions .* \(1, 9, \d+\)"):
        checkpoint._check_cost(vision, (96, 96))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.float16), ("torch.float32", torch.float32), ("bfloat16", torch.bfloat16), (torch.half, torch.half)],
)
def test_a_dtype_is_a_name_with_or_without_torch_or_that_of_the_file(tmp_path, model, processor, dtype, expected):
    model.half().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, _ = load_checkpoint(Source(str(tmp_path)), dtype=dtype)
    assert loaded.dtype == expected


@pytest.mark.parametrize("dtype", ["fp16", "int8", "torch", "nn", 16])
def test_what_is_no_dtype_is_not_blamed_on_the_checkpoint(dtype):
    with pytest.raises(ValueError, match=f"dtype must be one of .*, found '?{dtype}'?"):
        load_checkpoint(Source(str(SHIPPED_CHECKPOINT)), dtype=dtype)
