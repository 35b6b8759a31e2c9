"""Whatever a file or a caller says, it is taken or refused in one line that says what is wrong.

Hypothesis damages files that are whole, field by field and byte by byte, and what was found so stands below as tests of
its own. The same examples each time; `tests/support/atheris_fuzz.py` looks for others.
"""

import base64
import copy
import io
import json
import struct
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from hf_gru_captioner import Captioner, untrusted_images
from hf_gru_captioner.checkpoint import SHIPPED_CHECKPOINT
from hf_gru_captioner.cli import main
from hf_gru_captioner.cli.training_options import read_config
from hf_gru_captioner.data import load_captions
from hf_gru_captioner.data.caption_files import read_caption_file
from hf_gru_captioner.errors import UsageError
from hf_gru_captioner.evaluation.coco import read_coco_annotations, read_coco_results
from hf_gru_captioner.inference.backend import GRAPH_RUNTIMES, GraphRuntime
from hf_gru_captioner.model import GRUCaptionerConfig, load_image
from hf_gru_captioner.training import DataConfig, TrainingConfig
from hf_gru_captioner.training.encoder import PretrainedEncoder
from hf_gru_captioner.training.run_folder import claim
from hf_gru_captioner.untrusted_images import Limits, RefusedError, fetch_image, open_image, read_images
from hf_gru_captioner.web.service import Decoding, ServicePool

ROOT = Path(__file__).parents[1]
ODD_TEXTS = ("", " ", "\0", "\ud800", "\ufeff", "\n", "a" * 5000, "../../x", "1e999", "null", "état", "=1+1", "%s", "~")
ODD_NUMBERS = (0, -1, 1, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), -0.0)
DEEP = 100_000  # brackets


def examples(number: int):
    """Deterministic examples; fixtures are made once for all of them."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=number, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


texts = st.sampled_from(ODD_TEXTS) | st.text(max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.sampled_from(ODD_NUMBERS) | st.floats() | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


def places_of(content, path=()):
    """Paths of everything in a JSON, including itself."""
    yield path
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content[:8]):
            yield from places_of(value, (*path, key))


@st.composite
def damaged_jsons(draw, content) -> bytes:
    """A JSON with one or two fields changed, removed or duplicated."""
    content = {"": copy.deepcopy(content)}
    for _ in range(draw(st.integers(1, 2))):
        *path, key = draw(st.sampled_from([path for path in places_of(content) if path]))
        parent = content
        for step in path:
            parent = parent[step]
        what = draw(st.sampled_from(("other", "other", "other", "gone", "twice")))
        if what == "other":
            parent[key] = draw(values)
        elif what == "gone" and len(path):
            del parent[key]
        elif isinstance(parent, list):
            parent.append(parent[key])
    return json.dumps(content.get("")).encode()


@st.composite
def damaged_bytes(draw, whole: bytes) -> bytes:
    """A file that is truncated, has bytes overwritten, or has a part duplicated."""
    place, end = sorted(draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    odd = st.sampled_from([b"\0", b"\xff", b"\xef\xbb\xbf", b'"', b"\n", b"[", b"{", b",", b"\t", b"9" * 5000, b"e9"])
    patch = draw(odd | st.binary(max_size=6))
    return draw(
        st.sampled_from(
            [
                whole[:place],
                whole[:place] + patch + whole[place:],
                whole[:place] + patch + whole[place + len(patch) :],
                whole[:end] + whole[place:],
                whole[:place] + whole[end:],
                patch + whole,
            ]
        )
    )


def damaged(content):
    """Both kinds of damage for JSON, only the second for bytes."""
    if isinstance(content, bytes):
        return damaged_bytes(content)
    return damaged_jsons(content) | damaged_bytes(json.dumps(content).encode())


@contextmanager
def taken_or_refused(named: str | Path = "", kinds: tuple = (OSError, ValueError)):
    """Only these errors may be raised, with one line that names what was read."""
    text = None
    try:
        yield
    except kinds as error:
        text = str(error).strip()
    if text is not None:
        assert text
        assert "\n" not in text
        assert len(text) < 3000, text[:3000]
        assert str(named) in text


def one_line_of(capsys, command: list) -> str:
    """The error message of a failing command."""
    capsys.readouterr()
    assert main([str(each) for each in command]) == 2
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if line.startswith("gru-captioner:")]
    assert lines == said[-1:], said
    return lines[0]


# ---------------------------------------------------------------------------------------------- the configuration

FIELDS = ("vocab_size", "embedding_size", "hidden_size", "attention_type", "num_attention_heads", "dropout")
FIELDS += ("bos_token_id", "pad_token_id", "eos_token_id", "unk_token_id", "decoder_start_token_id")
FIELDS += ("tie_word_embeddings", "is_encoder_decoder", "freeze_encoder")


@examples(200)
@given(st.dictionaries(st.sampled_from(FIELDS), values, max_size=3))
def test_a_configuration_of_any_values_is_made_or_refused(fields):
    with suppress(ValueError):
        GRUCaptionerConfig(**fields)


def test_sizes_that_only_take_time_and_memory_are_refused_at_once():
    with pytest.raises(ValueError, match="hidden_size must be at most 16,777,216"):
        GRUCaptionerConfig(hidden_size=10**15 + 1)
    with pytest.raises(ValueError, match="take 1 heads"):
        GRUCaptionerConfig(hidden_size=2**24 - 3, num_attention_heads=8)  # a prime


# ------------------------------------------------------------------------------------------------ the training run

OPTIONS = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text())
TAGS = (
    "!!python/object/apply:os.system ['touch {}']",
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{}']]",
    "!!python/object/new:os.system ['touch {}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/tuple [1, 2]",
    "!mine x",
)


def read_options(content: bytes, folder: Path) -> None:
    path = folder / "options.yaml"
    path.write_bytes(content)
    with taken_or_refused(kinds=(UsageError, OSError, ValueError)):
        config = read_config(["--config", str(path)], "train", "")
        assert isinstance(config.output_dir, str)


@examples(15)  # a third of a second each: jsonargparse makes its parser anew
@given(damaged_jsons(OPTIONS))  # a json is a YAML file too
def test_options_of_any_values_are_read_or_refused(tmp_path, content):
    read_options(yaml.safe_dump(json.loads(content)).encode(errors="surrogatepass"), tmp_path)


@examples(15)
@given(damaged_bytes((ROOT / "configs" / "smoke.yaml").read_bytes()))
def test_a_damaged_file_of_options_is_read_or_refused(tmp_path, content):
    read_options(content, tmp_path)


@pytest.mark.parametrize("tag", TAGS)
def test_a_file_of_options_runs_nothing(tmp_path, capsys, tag):
    (tmp_path / "options.yaml").write_text(f"data:\n  source: {tag.format(tmp_path / 'run')}\noutput_dir: x\n")
    said = one_line_of(capsys, ["train", "--config", tmp_path / "options.yaml"])
    assert "could not determine a constructor for the tag" in said
    assert not (tmp_path / "run").exists()


MORE = "{" + ", ".join(f"k{i}: *a" for i in range(9)) + "}"
BAD_OPTIONS = {
    "nothing": b"",
    "a list": b"- 1\n- 2\n",
    "a text": b"train",
    "bytes": bytes(range(256)),
    "a null byte": b'data: {source: "\0"}\n',
    "many brackets": b"data: " + b"[" * DEEP,
    "many brackets that close": b"data: " + b"[" * DEEP + b"]" * DEEP,
    "a bomb of names": b"a: &a [1,1,1,1,1,1,1,1,1]\n"
    + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(ord("b"), ord("k")))
    + b"output_dir: *j\n",
    "a name of itself": b"data: &a {source: *a}\noutput_dir: x\n",
    "a key that is a list": b"? [1, 2]\n: 3\n",
    "a number for a key": b"3: 4\n",
    "a number of many digits": b"data: {source: x}\noutput_dir: x\noptimization: {epochs: " + b"9" * 5000 + b"}\n",
    "a group that is a text": b"data: x\noutput_dir: x\n",
    "a group that is a number": b"data: {source: x}\noutput_dir: x\ntokenizer: 42\n",
    "a group that is null": b"data: {source: x}\noutput_dir: x\nmodel: null\n",
    "an unknown option": b"data: {sauce: x}\noutput_dir: x\n",
    "no epochs": b"data: {source: x}\noutput_dir: x\noptimization: {epochs: 0}\n",
    "a class for a group": b"data: {class_path: os.system, init_args: {command: ls}}\noutput_dir: x\n",
}


@pytest.mark.parametrize("fault", BAD_OPTIONS)
def test_a_file_that_holds_no_options_is_refused_in_one_line(tmp_path, capsys, fault):
    (tmp_path / "options.yaml").write_bytes(BAD_OPTIONS[fault])
    assert len(one_line_of(capsys, ["train", "--config", tmp_path / "options.yaml"])) < 3000


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "5", "\0"])
def test_a_run_folder_whose_options_are_none_is_left_alone(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UsageError, match=r"config\.yaml doesn't contain the options of a run"):
        claim(TrainingConfig(DataConfig("x"), str(tmp_path)), accelerator=None)
    assert (tmp_path / "config.yaml").read_text() == content


def test_sizes_and_encoders_that_no_model_can_be_made_of_are_mistakes_of_the_caller(tmp_path):
    with pytest.raises(ValueError, match=r"^hidden_size must be a multiple of num_attention_heads"):
        PretrainedEncoder(str(SHIPPED_CHECKPOINT)).model(hidden_size=10)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=f"the encoder {tmp_path} is damaged"):
        PretrainedEncoder(str(tmp_path)).model()


# --------------------------------------------------------------------------------------------------- caption files

COCO_IMAGES = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
COCO_ROWS = [{"id": 1, "image_id": 1, "caption": "a dog"}, {"id": 2, "image_id": 2, "caption": "a cat"}]
COCO = {"images": COCO_IMAGES, "annotations": COCO_ROWS}
KARPATHY = {
    "images": [
        {"filename": "a.jpg", "split": "train", "cocoid": 1, "sentences": [{"raw": "a dog"}]},
        {"filename": "b.jpg", "filepath": "val2014", "split": "val", "sentences": [{"raw": "a cat"}]},
    ],
    "dataset": "coco",
}
LAYOUTS = {
    "t.csv": b'image,caption,split\na.jpg,"a dog, red",train\nb.jpg,a cat,val\n',
    "t.tsv": b"image\tcaption_0\tcaption_1\na.jpg\ta dog\ttwo dogs\nb.jpg\ta cat\t\n",
    "t.jsonl": b'{"image": "a.jpg", "captions": ["a dog"]}\n{"image": "b.jpg", "caption": "a cat", "split": "val"}\n',
    "list.json": [{"image": "a.jpg", "caption": "a dog"}, {"image": "b.jpg", "captions": [{"raw": "a cat"}]}],
    "coco.json": COCO,
    "karpathy.json": KARPATHY,
    "t.token.txt": b"a.jpg#0\ta dog\na.jpg#1\ttwo dogs\nb.jpg#0\ta cat\n",
    "t.txt": b"image,caption\na.jpg,a dog\nb.jpg,a cat\n",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_damaged_caption_file_is_read_or_refused(tmp_path, name):
    path = tmp_path / name

    @examples(100)
    @given(damaged(LAYOUTS[name]) | st.binary(max_size=40))
    def check(content):
        path.write_bytes(content)
        with taken_or_refused(path):
            for photo in read_caption_file(path):
                assert isinstance(photo.path, str)
                assert isinstance(photo.image_id, str)
                assert isinstance(photo.split, str | None)
                assert all(isinstance(caption, str) and caption.strip() for caption in photo.captions)
                "".join((photo.path, photo.image_id, photo.split or "", *photo.captions)).encode()

    check()


def odd(content, **fields) -> bytes:
    """A JSON whose first image has other fields."""
    content = copy.deepcopy(content)
    content["images"][0].update(fields)
    return json.dumps(content).encode()


BAD_CAPTIONS = {  # name, content and what must be said besides the file's name
    "a number for a caption": ("t.json", b'[{"image": "a", "caption": 5}]', "row 1: a caption must be text, found 5"),
    "a number in captions": (
        "t.jsonl",
        b'{"image": "a", "captions": ["x", 5]}',
        "row 1: a caption must be text, found 5",
    ),
    "true for captions": ("t.jsonl", b'{"image": "a", "captions": true}', "a caption must be text, found True"),
    "an object for a name": ("t.jsonl", b'{"image": {"a": 1}, "caption": "x"}', '"image" must be text or a number'),
    "an object for a split": ("t.jsonl", b'{"image": "a", "caption": "x", "split": [1]}', '"split" must be text'),
    "half a character": ("t.jsonl", b'{"image": "a", "caption": "\\ud83d"}', "'a' contains half of a surrogate pair"),
    "too many digits": ("t.jsonl", b'{"image": ' + b"9" * 5000 + b', "caption": "x"}', "line 1 is not JSON"),
    "digits in a json": ("t.json", b"9" * 5000, "is not one JSON value"),
    "brackets": ("t.json", b"[" * DEEP, "nested too deeply"),
    "brackets in a line": ("t.jsonl", b'{"image": ' + b"[" * DEEP, "nested too deeply"),
    "an open quotation mark": ("t.csv", b'image,caption\na,"' + b"x" * 200_000, "line 2: field larger"),
    "images that are not a list": ("t.json", b'{"images": 5, "annotations": []}', '"images" is not a list, found 5'),
    "images of numbers": ("t.json", b'{"images": [5]}', '"images" is not a list of objects'),
    "images by name": ("t.json", b'{"images": {"a": 1}}', '"images" is not a list of objects'),
    "annotations of text": ("t.json", b'{"images": [], "annotations": ["a"]}', 'row 1 needs an "image_id"'),
    "an annotation of no image": (
        "t.json",
        odd(COCO).replace(b'"image_id": 1', b'"x": 1'),
        'row 1 needs an "image_id"',
    ),
    "a list for an id": ("t.json", odd(COCO, id=[1]), 'image 1 needs an "id", found {"id": [1]'),
    "no file name": ("t.json", odd(COCO, file_name=None), 'image 1: "file_name" must be text or a number, found None'),
    "a sentence of a number": ("t.json", odd(KARPATHY, sentences=[7]), "image 1: a caption must be text, found 7"),
    "a split of a list": ("t.json", odd(KARPATHY, split=[]), 'image 1: "split" must be text'),
    "many columns": ("t.csv", b",".join(b"c%d" % i for i in range(10_000)) + b"\n1\n", "Columns found: c0, c1, "),
}


@pytest.mark.parametrize("fault", BAD_CAPTIONS)
def test_what_is_no_caption_is_named_with_its_place(tmp_path, fault):
    name, content, said = BAD_CAPTIONS[fault]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as refused:  # noqa: PT011, the text is looked at below
        read_caption_file(tmp_path / name)
    text = str(refused.value)
    assert text.startswith(str(tmp_path / name))
    assert said in text
    assert len(text) < 1500
    assert "\n" not in text


def test_a_list_of_a_split_in_another_encoding_is_named_itself(tmp_path):
    (tmp_path / "t.token.txt").write_bytes(b"a.jpg#0\ta dog\n")
    (tmp_path / "x.trainImages.txt").write_bytes(b"caf\xe9.jpg\n")
    with pytest.raises(ValueError, match=r"x\.trainImages\.txt is not UTF-8 text"):
        read_caption_file(tmp_path / "t.token.txt")


def test_ids_of_coco_join_as_numbers_and_as_texts(tmp_path):
    (tmp_path / "t.json").write_bytes(odd(COCO, id="1"))
    assert [photo.captions for photo in read_caption_file(tmp_path / "t.json")] == [("a dog",), ("a cat",)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data/train-00000-of-00001.parquet", b"PAR1 torn"),
        ("metadata.csv", b'file_name,caption\n"a.jpg,x\n'),
        ("metadata.jsonl", b"{"),
        ("state.json", b"[]"),
        ("dataset_dict.json", b"5"),
        ("train-0.tar", b"torn"),
    ],
)
def test_a_damaged_data_set_is_refused_by_its_name(tmp_path, name, content):
    folder = tmp_path / "set"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_bytes(content)
    Image.new("RGB", (8, 8)).save(folder / "a.jpg")
    with pytest.raises((OSError, ValueError)) as refused:
        load_captions(folder)
    assert str(folder) in str(refused.value)


# ---------------------------------------------------------------------------------------------- COCO's result files


@pytest.mark.parametrize(("read", "content"), [(read_coco_results, COCO_ROWS), (read_coco_annotations, COCO)])
def test_a_damaged_file_of_results_is_read_or_refused(tmp_path, read, content):
    path = tmp_path / "results.json"

    @examples(150)
    @given(damaged(content))
    def check(damaged_content):
        path.write_bytes(damaged_content)
        with taken_or_refused(path):
            for image_id, captions in read(path).items():
                "".join((image_id, *captions)).encode()

    check()


BAD_RESULTS = {
    "images that are not a list": (
        b'{"images": 5, "annotations": [{"image_id": 1, "caption": "x"}]}',
        '"images" is not a list',
    ),
    "a list for an id": (b'{"images": [{"id": []}], "annotations": []}', 'image 1 needs an "id", found'),
    "half a character": (b'{"annotations": [{"image_id": 1, "caption": "\\ud83d"}]}', "half of a surrogate pair"),
    "brackets": (b"[" * DEEP, "nested too deeply"),
    "digits": (b"9" * 5000, "is not JSON"),
}


@pytest.mark.parametrize("fault", BAD_RESULTS)
def test_what_is_no_result_is_refused_in_one_line(tmp_path, capsys, fault):
    content, said = BAD_RESULTS[fault]
    path = tmp_path / "annotations.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as refused:  # noqa: PT011, the text is looked at below
        read_coco_annotations(path)
    assert said in str(refused.value)
    assert str(path) in one_line_of(capsys, ["score", path, "--references", path])


# ---------------------------------------------------------------------------------------------- checkpoint folders

JSONS = ("config.json", "generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def caption_with(checkpoint):
    """Captions a photo with the tiny checkpoint while one of its files has other content; then restores the file."""

    def caption(name: str, content: bytes) -> None:
        path = checkpoint / name
        whole = path.read_bytes()
        path.write_bytes(content)
        try:
            with taken_or_refused(checkpoint):
                captioner = Captioner.from_pretrained(checkpoint)
                assert np.isfinite(captioner(Image.new("RGB", (40, 30), "red")).score)
        finally:
            path.write_bytes(whole)

    return caption


@pytest.mark.parametrize("name", JSONS)
def test_a_checkpoint_with_damaged_settings_captions_or_is_refused(checkpoint, caption_with, name):
    whole = json.loads((checkpoint / name).read_bytes())

    @examples(15)
    @given(damaged(whole))
    def check(content):
        caption_with(name, content)

    check()


@examples(20)
@given(st.data())
def test_a_checkpoint_with_damaged_weights_captions_or_is_refused(checkpoint, caption_with, data):
    whole = (checkpoint / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    kind = data.draw(st.sampled_from(["fields", "bytes", "length", "cut"]))
    if kind == "cut":
        content = whole[: data.draw(st.integers(0, len(whole)))]
    elif kind == "length":
        content = data.draw(st.binary(min_size=8, max_size=8)) + whole[8:]
    else:
        header = json.loads(whole[8 : 8 + length])
        header = data.draw(damaged_jsons(header) if kind == "fields" else damaged_bytes(whole[8 : 8 + length]))
        content = struct.pack("<Q", len(header)) + header + whole[8 + length :]
    caption_with("model.safetensors", content)


EMBEDDINGS = "decoder.embed_tokens.weight"
GATES = ("decoder.language_gru.bias_ih_l0", "decoder.language_gru.bias_hh_l0")


def swap(weights):
    weights[GATES[0]], weights[GATES[1]] = weights[GATES[1]], weights[GATES[0]]


def swap_sizes(weights):
    weights[GATES[0]], weights[EMBEDDINGS] = weights[EMBEDDINGS], weights[GATES[0]]


def one_of(weights, value):
    weights[EMBEDDINGS].view(-1)[7] = value


WEIGHTS = {  # what is done to them, and what is said; None where they are taken
    "of other names, but of the same sizes": (swap, None),
    "of other names and sizes": (swap_sizes, "don't fit together"),
    "too many": (lambda weights: weights.update(extra=torch.ones(3)), None),
    "one too few": (lambda weights: weights.pop(GATES[0]), f"lacks weights: 1, such as {GATES[0]}"),
    "one nan": (lambda weights: one_of(weights, float("nan")), f"not finite, such as {EMBEDDINGS}"),
    "infinite": (lambda weights: one_of(weights, float("inf")), f"not finite, such as {EMBEDDINGS}"),
    "minus infinite": (lambda weights: one_of(weights, -float("inf")), f"not finite, such as {EMBEDDINGS}"),
    "finite, but far too large": (lambda weights: weights[GATES[0]].fill_(3e38), None),
    "all far too large": (lambda weights: [each.fill_(1e38) for each in weights.values() if each.ndim > 1], "damaged"),
    "in double precision": (lambda weights: weights.update({EMBEDDINGS: weights[EMBEDDINGS].double()}), None),
    "whole numbers": (lambda weights: weights.update({EMBEDDINGS: weights[EMBEDDINGS].long()}), None),
    "a smaller vocabulary": (
        lambda weights: weights.update({EMBEDDINGS: weights[EMBEDDINGS][:-1].clone()}),
        "don't fit together",
    ),
    "none": (lambda weights: weights.clear(), "lacks"),
    "without dimensions": (lambda weights: weights.update({EMBEDDINGS: torch.tensor(1.0)}), "don't fit together"),
}


@pytest.mark.parametrize("fault", WEIGHTS)
def test_weights_that_are_not_those_of_the_model_are_refused_by_name(checkpoint, fault):
    change, said = WEIGHTS[fault]
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file({name: each.contiguous() for name, each in weights.items()}, checkpoint / "model.safetensors")
    if said is None:
        assert Captioner.from_pretrained(checkpoint)(Image.new("RGB", (9, 9))).words is not None
        return
    with pytest.raises(ValueError) as refused:  # noqa: PT011, the text is looked at below
        Captioner.from_pretrained(checkpoint)
    assert str(checkpoint) in str(refused.value)
    assert said in str(refused.value)


def changed(content, path: str, value):
    *path, key = path.split(".")
    parent = content
    for step in path:
        parent = parent[step]
    parent[key] = value
    return content


SETTINGS = {  # file, field, value and what is said
    "beams without end": ("generation_config.json", "num_beams", 10**9, "num_beams of .* a whole number from 1"),
    "words without end": ("generation_config.json", "max_new_tokens", 10**9, "max_new_tokens of .* from 1 to"),
    "no words": ("generation_config.json", "max_new_tokens", 0, "is damaged|max_new_tokens of"),
    "words in words": ("generation_config.json", "max_new_tokens", "many", "is damaged|max_new_tokens of"),
    "tokens that are no list": ("generation_config.json", "suppress_tokens", "a", "must be a list of token ids"),
    "a start that is none": ("generation_config.json", "decoder_start_token_id", 10**6, "is damaged"),
    "a penalty in words": ("generation_config.json", "length_penalty", "much", "is damaged"),
    "photos without end": ("processor_config.json", "image_processor.size", {"height": 10**6, "width": 10**6}, "2048"),
    "an edge without end": ("processor_config.json", "image_processor.size", {"shortest_edge": 10**6}, "2048"),
    "a mean of text": ("processor_config.json", "image_processor.image_mean", "grey", "is damaged"),
    "a deviation of none": ("processor_config.json", "image_processor.image_std", [0.0, 0.0, 0.0], "is damaged"),
    "a resampling that is none": ("processor_config.json", "image_processor.resample", 99, "is damaged"),
    "a vocabulary without end": ("config.json", "vocab_size", 2**24, "is damaged"),
    "a width without end": ("config.json", "hidden_size", 2**24, "is damaged"),
    "a width of many digits": ("config.json", "hidden_size", 10**30 + 1, "is damaged"),
    "a type that is none": ("config.json", "model_type", ["gru_captioner"], "not a GRU captioner"),
    "layers without end": (
        "config.json",
        "encoder_config.num_hidden_layers",
        10**9,
        "num_hidden_layers in its config.json is more than 1,000",
    ),
    "stages without end": (
        "config.json",
        "encoder_config.model_args",
        {"depths": [2, 10**9]},
        "depths in its config.json is more than 1,000 in total",
    ),
    "a list for an encoder": ("config.json", "encoder_config", [1], "is damaged"),
}


@pytest.mark.parametrize("fault", SETTINGS)
def test_settings_that_no_caption_can_be_written_by_are_refused(checkpoint, fault):
    name, field, value, said = SETTINGS[fault]
    content = changed(json.loads((checkpoint / name).read_text()), field, value)
    (checkpoint / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said) as refused:
        Captioner.from_pretrained(checkpoint)
    assert str(checkpoint) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", JSONS)
@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe", b"[" * DEEP], ids=["list", "bytes", "brackets"])
def test_files_that_hold_no_settings_are_refused_and_none_is_passed_over(checkpoint, capsys, name, content):
    (checkpoint / name).write_bytes(content)
    photo = ROOT / "demo" / "examples" / "kitten.jpg"
    assert str(checkpoint) in one_line_of(capsys, ["caption", photo, "--checkpoint", checkpoint])


# ---------------------------------------------------------------------------------------------------- graph folders


@pytest.fixture
def graphs(checkpoint, tmp_path, monkeypatch):
    """Folder of graphs, run by NumPy in place of ONNX Runtime: only their settings are damaged here."""
    side, width, vocab_size = 12, 4, len(json.loads((checkpoint / "tokenizer.json").read_text())["model"]["vocab"])

    def load(path, num_threads):
        random = np.random.default_rng(0)

        def encoder(inputs):
            photos = inputs["photos"]
            if photos.shape[1:] != (side, side, 3):  # as the real ones
                raise RuntimeError("INVALID_ARGUMENT: Got invalid dimensions for input: photos")
            regions = np.zeros((len(photos), 9, width), np.float32)
            return [regions, regions, regions, np.zeros((2, len(photos), width), np.float32)]

        def step(inputs):
            logits = random.normal(size=(*inputs["tokens"].shape, vocab_size)).astype(np.float32)
            log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            return [log_probabilities, inputs["states"], np.full((*inputs["tokens"].shape, 9), 1 / 9, np.float32)]

        return encoder if path.stem == "encoder" else step

    monkeypatch.setitem(GRAPH_RUNTIMES, "onnxruntime", GraphRuntime(load, "onnxruntime", (".onnx",)))
    folder = tmp_path / "graphs"
    folder.mkdir()
    for name in ("encoder.onnx", "step.onnx"):
        (folder / name).touch()
    (folder / "tokenizer.json").write_bytes((checkpoint / "tokenizer.json").read_bytes())
    generation = {"bos_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 2, "length_penalty": 0.9}
    generation |= {"max_new_tokens": 6, "num_beams": 3, "pad_token_id": 1, "suppress_tokens": [0, 1, 3]}
    settings_of_graphs = {"weights": "0" * 64, "format": "onnx", "precision": "float32", "image_size": [side, side]}
    settings_of_graphs |= {"resample": 3, "has_attention": True, "generation": generation}
    (folder / "graphs.json").write_text(json.dumps(settings_of_graphs))
    return folder


@pytest.mark.parametrize("name", ["graphs.json", "tokenizer.json"])
def test_damaged_graphs_caption_or_are_refused(graphs, name):
    whole = json.loads((graphs / name).read_bytes())

    @examples(60)
    @given(damaged(whole))
    def check(content):
        (graphs / name).write_bytes(content)
        with taken_or_refused(graphs):
            captioner = Captioner.from_pretrained(graphs, backend="onnxruntime")
            assert np.isfinite(captioner(Image.new("RGB", (40, 30), "red")).score)

    check()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", [10**6, 10**6]),
        ("image_size", [0, 12]),
        ("image_size", [13, 12]),
        ("image_size", [12.0, 12.0]),
        ("resample", "bicubic"),
        ("resample", 99),
        ("has_attention", None),
        ("generation", []),
        ("generation.num_beams", 10**9),
        ("generation.max_new_tokens", 10**9),
        ("generation.eos_token_id", None),
        ("generation.suppress_tokens", ["a"]),
        ("generation.length_penalty", "x"),
        ("weights", None),
    ],
)
def test_graphs_whose_settings_do_not_fit_them_are_refused(graphs, field, value):
    content = changed(json.loads((graphs / "graphs.json").read_text()), field, value)
    (graphs / "graphs.json").write_text(json.dumps(content))
    with pytest.raises(ValueError) as refused:  # noqa: PT011, the text is looked at below
        Captioner.from_pretrained(graphs, backend="onnxruntime")
    assert str(graphs) in str(refused.value)


# ---------------------------------------------------------------------------------------------------------- the demo

SIZES = Limits(image_bytes=200_000, archive_bytes=400_000, archive_images=5, seconds=1.0)


def encoded(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def zipped(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in ("a.png", "b/b.png"):
            archive.writestr(name, encoded())
    return buffer.getvalue()


FIELDS_OF_DECODING = ("strategy", "num_captions", "num_beams", "temperature", "top_p", "length_penalty", "max_words")
FIELDS_OF_DECODING += ("no_repeat_ngram",)


@examples(200)
@given(st.dictionaries(st.sampled_from(FIELDS_OF_DECODING), values, max_size=3))
def test_settings_of_the_demo_are_bounded_or_refused(fields):
    with taken_or_refused(kinds=(RefusedError,)):
        decoding = Decoding(**fields)
        assert 1 <= decoding.captions_written <= 5
        assert 1 <= decoding.generation()["num_beams"] <= 10
        assert 3 <= decoding.generation()["max_new_tokens"] <= 40


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO"])
def test_a_damaged_picture_is_opened_or_refused(kind):
    @examples(40)
    @given(damaged_bytes(encoded(kind)))
    def check(content):
        with taken_or_refused(kinds=(RefusedError,)):
            picture = open_image(content, SIZES)
            with taken_or_refused(kinds=(ValueError,)):
                assert load_image(picture).mode == "RGB"
        with taken_or_refused():
            assert load_image(content, size=(8, 8)).size == (8, 8)

    check()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_archive_is_read_or_refused(method):
    @examples(80)
    @given(damaged_bytes(zipped(method)))
    def check(content):
        with taken_or_refused(kinds=(RefusedError,)):
            for name, picture in read_images(io.BytesIO(content), SIZES):
                assert isinstance(name, str)
                assert isinstance(picture, bytes | RefusedError)

    check()


def test_an_archive_whose_packed_bytes_are_no_packed_bytes_loses_that_picture_alone():
    content = bytearray(zipped(zipfile.ZIP_DEFLATED))
    place = content.find(b"a.png") + len("a.png")
    content[place : place + 24] = b"\xff" * 24
    found = dict(read_images(io.BytesIO(bytes(content)), SIZES))
    assert "damaged or encrypted" in str(found["a.png"])
    assert found["b/b.png"] == encoded()


@examples(150)
@given(
    st.builds(
        "".join,
        st.lists(st.sampled_from(["http://", "https://", "a.b", "[::1", "]", "@", ":", "80", "/", "?"]) | texts),
    )
)
def test_any_text_for_an_address_is_refused_without_a_word_to_the_network(address):
    with pytest.raises(RefusedError) as refused:
        fetch_image(address, SIZES, resolve=lambda host, port: ["127.0.0.1"])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("answer", ["http://[::1", "http://a\u2100.example", "//[", "https://\ud800"])
def test_a_redirect_to_no_address_is_refused(monkeypatch, answer):
    monkeypatch.setattr(untrusted_images, "_get", lambda *_: answer)
    with pytest.raises(RefusedError):
        fetch_image("http://photos.example", SIZES)


@pytest.fixture
def caption_of(checkpoint):
    """The demo's endpoint for programs, called without the network."""
    from hf_gru_captioner.web.page import build_page

    pool = ServicePool(["tiny"], lambda name: Captioner.from_pretrained(checkpoint))
    page = build_page(pool, load_image, limits=SIZES)
    yield next(each.fn for each in page.fns.values() if each.api_name == "caption")
    pool["tiny"].close()


def test_whatever_a_program_sends_to_the_demo_is_captioned_or_refused(caption_of):
    import gradio as gr

    photo = base64.b64encode(encoded()).decode()
    sent = st.sampled_from([photo, f"data:image/png;base64,{photo}", photo[:40], "http://127.0.0.1/a", "file:///x"])
    names = st.sampled_from([*FIELDS_OF_DECODING, "checkpoint"])

    @examples(60)
    @given(sent | values, st.dictionaries(names, values, max_size=1))
    def check(photo, fields):
        with taken_or_refused(kinds=(gr.Error,)):
            assert caption_of(photo, **fields)["words"] is not None

    check()


def test_a_checkpoint_that_is_no_name_is_refused():
    pool = ServicePool(["tiny"], Captioner.from_pretrained, any_name=True)
    for name in ([], {}, None, 5, "\0", "a" * 5000, "a/b/c/d"):
        with pytest.raises(RefusedError) as refused:
            pool[name]
        assert "\n" not in str(refused.value)
