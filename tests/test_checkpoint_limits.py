"""Malicious checkpoints. Each of these used to run code, lead elsewhere, or take minutes or gigabytes."""

import contextlib
import json
import struct
import tracemalloc

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from transformers import SwinConfig, ViTConfig

from hf_gru_captioner import Captioner
from hf_gru_captioner.checkpoint_limits import PATTERNS, _is_slow, check_encoder, check_search_settings, check_tokenizer

AUTO_CLASSES = (
    *("AutoConfig", "AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor", "AutoVideoProcessor"),
    *("AutoModel", "AutoModelForImageTextToText", "GenerationConfig"),
)
MAP = {**dict.fromkeys(AUTO_CLASSES, "evil.Evil"), "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
# Each file that may carry a map, with the fields whose absence makes transformers look for it
MAY_CARRY_A_MAP = {
    "config.json": (),
    "generation_config.json": (),
    "processor_config.json": ("image_processor",),
    "preprocessor_config.json": (),
    "image_processor_config.json": (),
    "feature_extractor_config.json": (),
    "tokenizer_config.json": ("tokenizer_class",),
    "special_tokens_map.json": (),
}


def change(path, *without, **fields):
    content = json.loads(path.read_text()) if path.exists() else {}
    content = {name: value for name, value in content.items() if name not in without}
    path.write_text(json.dumps({**content, **fields}))


@pytest.fixture
def evil(checkpoint, tmp_path, monkeypatch):
    """A checkpoint with code, and a user who confirms every prompt; reports whether the code ran."""
    (checkpoint / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    (checkpoint / "custom_generate").mkdir()
    (checkpoint / "custom_generate" / "generate.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    asked = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def load():
        with contextlib.suppress(ValueError):
            Captioner.from_pretrained(checkpoint)
        return bool(asked) or (tmp_path / "ran").exists()

    return load


@pytest.mark.parametrize("file", MAY_CARRY_A_MAP)
def test_no_map_of_any_file_runs_code_even_for_who_says_yes(evil, checkpoint, file):
    change(checkpoint / file, *MAY_CARRY_A_MAP[file], auto_map=MAP)
    if file == "preprocessor_config.json":
        (checkpoint / "processor_config.json").unlink()
    assert not evil()


@pytest.mark.parametrize("of", ["the encoder", "the image processor"])
def test_no_map_inside_of_a_part_runs_code(evil, checkpoint, of):
    if of == "the encoder":
        config = json.loads((checkpoint / "config.json").read_text())["encoder_config"]
        change(checkpoint / "config.json", encoder_config={**config, "model_type": "timm_backbone", "auto_map": MAP})
    else:
        change(checkpoint / "processor_config.json", image_processor={"auto_map": MAP})
    assert not evil()


@pytest.mark.parametrize(
    "fields",
    [
        {"architecture": "hf-hub:someone/else"},
        {"architecture": "hf_hub:someone/else"},
        {"architecture": "local-dir:/etc"},
        {"architecture": "someone/else"},
        {"model_type": "timm_backbone", "backbone": "hf-hub:someone/else"},
        {"model_type": "timm_backbone", "backbone": "resnet18", "use_pretrained_backbone": True},
        {"model_args": {"checkpoint_path": "/tmp/weights.pth"}},
        {"model_args": {"pretrained": True}},
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": {"": "someone/kernel"}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"auto_map": MAP},
    ],
    ids=lambda fields: "-".join(fields) + str(list(fields.values())[-1])[:10],
)
def test_an_encoder_that_leads_elsewhere_is_refused_before_anything_is_asked(hub, checkpoint, fields):
    config = json.loads((checkpoint / "config.json").read_text())["encoder_config"]
    change(checkpoint / "config.json", encoder_config={**config, **fields})
    with pytest.raises(ValueError, match=r"is refused: \w+ in its config\.json, .* leads out of the checkpoint"):
        Captioner.from_pretrained(checkpoint)
    assert not hub.requests


def test_an_encoder_of_its_own_name_is_taken(checkpoint):
    check_encoder("x", json.loads((checkpoint / "config.json").read_text()))
    check_encoder("x", ViTConfig().to_dict())
    check_encoder("x", SwinConfig().to_dict())
    check_encoder("x", {"_attn_implementation_autoset": True})  # as transformers 4.47 to 4.53 wrote it


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length_penalty": 1e308}, r"length_penalty of .* must be a number from -10 to 10, found 1e\+308"),
        ({"length_penalty": float("nan")}, r"length_penalty of .* must be a number from -10 to 10, found nan"),
        ({"length_penalty": "long"}, r"length_penalty of .* must be a number"),
        ({"no_repeat_ngram_size": -1}, r"no_repeat_ngram_size of .* must be a whole number, or 0 .*, found -1"),
        ({"no_repeat_ngram_size": 2.0}, r"no_repeat_ngram_size of .* must be a whole number"),
        ({"bad_words_ids": [[5] * 10_000] * 100}, r"bad_words_ids of .* has more than 10,000 tokens"),
        ({"sequence_bias": [[[5] * 20_000, 1.0]]}, r"sequence_bias of .* has more than 10,000 tokens"),
        ({"max_new_tokens": 10**9}, r"max_new_tokens of .* must be a whole number from 1 to 1,000"),
        (
            {"prompt_lookup_num_tokens": 1},
            r"prompt_lookup_num_tokens of .* is not a setting that a checkpoint may contain",
        ),
        ({"num_beam_groups": True}, r"num_beam_groups of .* is not a setting that a checkpoint may contain"),
        ({"stop_strings": ["a" * 1000]}, r"stop_strings of .* is not a setting that a checkpoint may contain"),
        ({"compile_config": {"mode": "max-autotune"}}, r"compile_config of .* is not a setting"),
        ({"num_beam_groups": 5, "num_beams": 10}, r"num_beam_groups of .* is not a setting"),
        ({"low_memory": True}, r"low_memory of .* is not a setting"),
        ({"penalty_alpha": 0.6}, r"penalty_alpha of .* is not a setting"),
        ({"custom_generate": "someone/else"}, r"custom_generate of .* is not a setting"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_of_generate_that_never_end_are_refused_by_name(checkpoint, settings, said):
    change(checkpoint / "generation_config.json", **settings)
    with pytest.raises(ValueError, match=said):
        Captioner.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    "settings",
    [
        *({"length_penalty": value} for value in (1e308, float("nan"), -1e9)),
        *({"no_repeat_ngram_size": value} for value in (-1, 2.0, "2", True)),
    ],
    ids=str,
)
def test_a_callers_settings_are_refused_by_name_too(checkpoint, photo, settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} must be a (whole )?number"):
        Captioner.from_pretrained(checkpoint)(photo, **settings)


CATASTROPHE = {"type": "Replace", "pattern": {"Regex": "(a|a)+$"}, "content": ""}
DOUBLING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
TOKENIZERS = {
    "a decoder that never ends": ({"decoder": CATASTROPHE}, "might never finish"),
    "hidden in a sequence": ({"decoder": {"type": "Sequence", "decoders": [CATASTROPHE]}}, "might never finish"),
    "a normalizer that never ends": ({"normalizer": CATASTROPHE}, "might never finish"),
    "a splitter that never ends": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False}},
        "might never finish",
    ),
    "a decoder that doubles": ({"decoder": {"type": "Sequence", "decoders": [DOUBLING] * 40}}, "more than 20 steps"),
    "a few that double": ({"decoder": {"type": "Sequence", "decoders": [DOUBLING] * 19}}, "without bound"),
    "a search for nothing": ({"decoder": {**DOUBLING, "pattern": {"String": ""}}}, "has an empty pattern"),
    "words of a megabyte": (
        {"model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a" * 10**6: 0}}},
        "characters",
    ),
    "added tokens": ({"added_tokens": [{"id": n, "content": f"<{n}>"} for n in range(6000)]}, "adds more than 5,000"),
    "a hundred thousand words": (
        {"model": {"type": "WordLevel", "unk_token": "a", "vocab": {f"{n}": n for n in range(10**5)}}},
        "the tokenizer has 100,000 tokens, the model",
    ),
    "a part that nobody knows": ({"x": [[]]}, "an unknown part, x"),
    "a million steps": ({"decoder": [{}] * 10**5}, "more than 10,000 parts"),
    "endless padding": ({"padding": {"strategy": {"Fixed": 10**9}}}, "Fixed in tokenizer.json is more than"),
}


@pytest.mark.parametrize("what", TOKENIZERS)
def test_a_tokenizer_that_takes_for_ever_is_refused(checkpoint, what):
    fields, said = TOKENIZERS[what]
    change(checkpoint / "tokenizer.json", **fields)
    with pytest.raises(ValueError, match=said):
        Captioner.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("expression", "is_slow"),
    [
        (r"(a+)+$", True),
        (r"(?:a|aa)*$", True),
        (r"([ab]{1,9}){5}", True),
        (r"a*a*a*a*a*b", True),
        (r"(x+x+)+y", True),
        (r"\((a+)\)+", False),
        (r"[(a+)]+$", False),  # a class, not a group
        (r"\(a+\)+", False),
        (r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", False),  # GPT-2's
        (r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)", False),
    ],
)
def test_slow_regular_expressions_are_told_from_usual_ones(expression, is_slow):
    assert _is_slow(expression) is is_slow


def test_the_packages_own_tokenizers_are_taken(tokenizer):
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    check_tokenizer(content)
    steps = [content["pre_tokenizer"], *content["normalizer"]["normalizers"], *content["decoder"]["decoders"]]
    patterns = {step["pattern"]["Regex"] for step in steps if "Regex" in step.get("pattern", {})}
    assert len(patterns) == 3  # words, quotes, clitics
    assert patterns <= PATTERNS


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "processor_config.json", "tokenizer.json"])
def test_a_file_far_larger_than_its_kind_is_refused_unread(checkpoint, file):
    with (checkpoint / file).open("r+b") as content:
        content.truncate(500_000_000)  # a hole: takes no disk
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"{file} is larger than \d+ MB"):
            Captioner.from_pretrained(checkpoint)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


def test_a_large_file_of_the_hub_is_not_fetched(hub, checkpoint, monkeypatch):
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()}
    files |= {"tokenizer.json": b" " * 12_000_001, "more/other.json": b"{}", "notes.json": b"{}"}
    hub.publish("me/captioner", files)
    with pytest.raises(ValueError, match=r"tokenizer\.json of me/captioner is larger than 12 MB"):
        Captioner.from_pretrained("me/captioner")
    asked = [path for _, path, _ in hub.requests]
    assert not [path for path in asked if "tokenizer.json" in path or "other.json" in path or "notes.json" in path]


def test_millions_of_empty_weights_are_refused_before_they_are_listed(checkpoint):
    entries = {f"{number:07d}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(120_000)}
    header = json.dumps(entries, separators=(",", ":")).encode()
    (checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match=r"has 120,000 weights|has a header larger than any model's"):
        Captioner.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", 90_000_000) + b" " * 90_000_000)
    with pytest.raises(ValueError, match="has a header larger than any model's"):
        Captioner.from_pretrained(checkpoint)


def test_an_encoder_that_takes_for_ever_on_one_photo_is_refused(make_model, processor, tmp_path):
    """A ViT with a few thousand weights that attends to every pixel of a large photo: 10^12 pairs."""
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    model = make_model(encoder_config=ViTConfig(**sizes, image_size=2, patch_size=1))
    config = model.config.encoder_config
    weights, config.image_size = model.state_dict(), 1000
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    name = next(name for name in weights if "position_embeddings" in name)
    saved = load_file(tmp_path / "model.safetensors")
    saved[name] = saved[name].new_zeros(1, 1000 * 1000 + 1, 4)
    save_file(saved, tmp_path / "model.safetensors", {"format": "pt"})
    settings = json.loads((tmp_path / "processor_config.json").read_text())["image_processor"]
    settings["size"] = {"height": 1000, "width": 1000}
    change(tmp_path / "processor_config.json", image_processor=settings)
    with pytest.raises(ValueError, match="an image of 1000 x 1000 pixels would take its encoder too much"):
        Captioner.from_pretrained(tmp_path)


def test_hundreds_of_thousands_of_layers_by_list_are_refused(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config["encoder_config"] = {"model_type": "swin", "depths": [900] * 900, "num_heads": [1] * 900}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"depths in its config\.json is more than 1,000 in total"):
        Captioner.from_pretrained(checkpoint)


def test_a_tokenizer_that_reads_another_file_is_refused(checkpoint):
    change(checkpoint / "tokenizer_config.json", tokenizer_file="/etc/passwd")
    with pytest.raises(ValueError, match=r"tokenizer_file in tokenizer_config\.json leads out of the checkpoint"):
        Captioner.from_pretrained(checkpoint)


def test_an_adapter_that_names_another_model_is_refused(checkpoint):
    (checkpoint / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    with pytest.raises(ValueError, match=r"adapter_config\.json leads to another model"):
        Captioner.from_pretrained(checkpoint)


@pytest.mark.parametrize("setting", ["num_beams", "max_new_tokens"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True, 1001])
def test_settings_of_the_search_are_whole_numbers_within_limits(setting, value):
    with pytest.raises(ValueError, match=f"{setting} must be a whole number from 1 to 1,000, found {value}"):
        check_search_settings({setting: value})


def test_suppressed_tokens_are_a_list():
    check_search_settings({"num_beams": np.int64(3), "max_new_tokens": None, "suppress_tokens": [1, 99999]})
    with pytest.raises(ValueError, match="suppress_tokens must be a list of token ids, found 5"):
        check_search_settings({"suppress_tokens": 5})
