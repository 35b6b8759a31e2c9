import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_gru_captioner import Captioner
from hf_gru_captioner.cli import main
from hf_gru_captioner.hub import CODE, Example, count_parameters, keep_scores, render_card

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "hf_gru_captioner"
STAGE = {
    "options": {
        "data.source": "flickr8k",
        "objective": "cross_entropy",
        "optimization.label_smoothing": 0.1,
        "optimization.encoder_learning_rate": 3e-4,
        "optimization.encoder_first_layer": "blocks.3",
        "optimization.images_per_step": 32,
    },
    "images": 6000,
    "captions": 30000,
    "machine": "a machine",
    "epoch": 6,
    "minutes": 21.4,
    "energy_kwh": 0.0213,
}
SCORES = {
    "data": "flickr8k",
    "split": "validation",
    "settings": "tok:ptb",
    "decoding": "num_beams:5",
    "signature": "tok:ptb|num_beams:5",
    "values": {"cider": 0.6123, "bleu_4": 0.2401, "vocabulary": 240.0},
    "intervals": {"cider": [0.58, 0.65]},
    "human": {"cider": 0.832, "vocabulary": 1557.0},
    "by_word": [{"word": "dog", "images": 200, "recall": 0.91, "hallucinated": 0.05}],
    "by_length": [{"shortest": 4.0, "longest": 8.2, "images": 333, "score": 0.7}],
}


@pytest.fixture
def recorded(checkpoint):
    """A checkpoint with a run's records."""
    (checkpoint / "training.json").write_text(json.dumps({"stages": [STAGE]}))
    keep_scores(checkpoint, SCORES)
    return checkpoint


def test_the_teacher_of_a_student_is_named(recorded):
    assert "not written by people" not in str(render_card(recorded, "me/captioner", license="cc-by-4.0"))
    teachers = [{"name": "big/teacher", "revision": "abc123"}, {"name": "my`folder", "revision": ""}]
    stages = [{**STAGE, "teachers": teachers}, {**STAGE, "teachers": teachers[:1]}]
    (recorded / "training.json").write_text(json.dumps({"stages": stages}))
    card = " ".join(str(render_card(recorded, "me/captioner", license="cc-by-4.0")).split())
    told = "were not written by people but by `big/teacher` (revision `abc123`), ``my`folder``, whose terms"
    assert told in card


def test_every_source_of_a_run_is_named(recorded):
    sources = [{"path": "jxie/flickr8k", "repeat": 1.0}, {"path": "mine", "repeat": 2.0}, {"path": "you/photos"}]
    stage = {**STAGE, "options": {**STAGE["options"], "data.source": sources}}
    (recorded / "training.json").write_text(json.dumps({"stages": [STAGE, stage]}))
    card = render_card(recorded, "me/captioner", license="cc-by-4.0")
    assert ModelCard(str(card)).data.datasets == ["jxie/flickr8k", "you/photos"]


def test_a_card_tells_what_each_dataset_says_of_it(recorded):
    record = {"label": "cat", "images": 30, "named": 21, "said": 25, "wrong": 3}
    labels = {"records": [record], "chair_i": 0.125, "chair_s": 0.2, "images": 200}
    keep_scores(recorded, {**SCORES, "data": "coco", "values": {"cider": 0.75}, "labels": labels})
    keep_scores(recorded, {**SCORES, "data": "coco", "values": {"cider": 0.7}, "decoding": "num_beams:1"})
    card = render_card(recorded, "me/captioner", license="cc-by-4.0")
    text = str(card)
    assert "On the validation split of flickr8k, times 100" in text
    assert "On the validation split of coco, times 100:" in text
    assert "| CIDEr | 75.0 |" in text
    assert "| coco, validation, `tok:ptb\\|num_beams:5` | 70.0 |  |  |" in text
    assert "| cat | 30 | 21 | 3 of 25 |" in text
    assert "12.5 % are not there (CHAIRi), in 20.0 % of the captions (CHAIRs)" in text
    scores = [(result.dataset_name, result.metric_value) for result in ModelCard(text).data.eval_results]
    assert scores == [("flickr8k", 61.2), ("flickr8k", 24.0), ("coco", 75.0)]
    keep_scores(recorded, {**SCORES, "data": "mine", "images": 27})
    text = str(render_card(recorded, "me/captioner", license="cc-by-4.0"))
    assert "On the 27 images of the validation split of mine, times 100. Only 27 images: the scores say little" in text


def test_the_metadata_is_what_the_hub_wants(recorded):
    card = render_card(recorded, "me/captioner", license="cc-by-4.0", datasets=["jxie/flickr8k"])
    data = ModelCard(str(card)).data
    assert (data.license, data.language, data.library_name, data.pipeline_tag) == (
        "cc-by-4.0",
        "en",
        "transformers",
        "image-to-text",
    )
    assert data.datasets == ["jxie/flickr8k"]
    assert data.model_name == "captioner"
    values = {result.metric_name: result.metric_value for result in data.eval_results}
    assert values == {"CIDEr": 61.2, "BLEU-4": 24.0}
    assert {(result.dataset_type, result.dataset_split) for result in data.eval_results} == {
        ("jxie/flickr8k", "validation")
    }


def test_the_text_says_what_the_records_say(recorded):
    text = str(render_card(recorded, "me/captioner", blanks=[Example("black", "a dog")], terms="Mine."))
    for line in (
        "| cross-entropy, label smoothing 0.1; encoder fine-tuned from blocks.3 on | 6,000 | 30,000 | 6 | 21 |",
        "Energy, estimated by CodeCarbon: 0.021 kWh.",
        "| CIDEr | 61.2 | 58.0 to 65.0 | 83.2 |",
        "| dog | 200 | 91 % | 5 % |",
        "| 4.0 to 8.2 | 333 | 70.0 |",
        "| black | a dog |",
        "Mine.",
    ):
        assert line in text, line


def test_a_checkpoint_without_records_says_so(checkpoint):
    text = str(render_card(checkpoint, "me/captioner"))
    assert "The checkpoint has no record of its training." in text
    assert "It was not scored: `gru-captioner score" in text
    assert ModelCard(text).data.eval_results is None


def test_its_example_code_runs(checkpoint, photo, tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", str(render_card(checkpoint, str(checkpoint))), re.DOTALL)
    assert len(block.strip().splitlines()) == 4
    photo.save(tmp_path / "photo.jpg", quality=95)
    output = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, cwd=tmp_path, check=True)
    expected = Captioner.from_pretrained(checkpoint)(tmp_path / "photo.jpg").text
    assert output.stdout.strip() == expected


def test_the_command_writes_card_and_images(checkpoint, photo, tmp_path, capsys):
    path = tmp_path / "mine.png"
    photo.save(path)
    before = {each.name for each in checkpoint.iterdir()}
    assert main(["card", str(checkpoint), "--images", str(path), "--title", "Mine"]) == 0
    assert {each.name for each in checkpoint.iterdir()} - before == {"README.md", "examples"}
    text = (checkpoint / "README.md").read_text()
    assert "# Mine\n" in text
    assert "![mine.png](examples/mine.jpg)" in text
    assert (checkpoint / "examples" / "mine.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert main(["card", str(checkpoint), "--images", str(tmp_path / "none.jpg")]) == 2
    assert "none.jpg: no such file" in capsys.readouterr().err


def test_images_of_the_same_name_are_shown_each_with_its_own_caption(checkpoint, make_photo, tmp_path):
    paths = [tmp_path / "a" / "mine.png", tmp_path / "b" / "mine.png"]
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        make_photo(seed, width=60 + 40 * seed).save(path)
    drawings = []
    for arguments in (paths, paths[:1], paths[1:]):
        assert main(["card", str(checkpoint), "--images", *map(str, arguments)]) == 0
        drawings.append({path.name: path.read_bytes() for path in (checkpoint / "examples").iterdir()})
        shutil.rmtree(checkpoint / "examples")
    both, first, second = drawings
    assert both == {"mine.jpg": first["mine.jpg"], "mine.2.jpg": second["mine.jpg"]}


@pytest.mark.parametrize("page", ["README.md", "docs/sharing.md", "model_card.md"])
def test_documents_name_exactly_the_code_files_of_a_checkpoint(page):
    assert set(CODE) == {path.name for path in (PACKAGE / "model").glob("*_gru_captioner.py")}
    assert set(re.findall(r"\w+_gru_captioner\.py", (ROOT / page).read_text())) == set(CODE)


@pytest.mark.slow
def test_model_card_is_what_make_card_writes(tmp_path, monkeypatch):
    recipe = re.search(r"gru-captioner (card (?:[^\\\n]|\\\n)*)", (ROOT / "Makefile").read_text()).group(1)
    words = shlex.split(recipe.replace("\\\n", " "))
    images = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "demo" / "examples").glob("*.jpg"))
    words = [*words[:-1], *images]
    for option in ("--output", "--image-folder"):
        index = words.index(option) + 1
        words[index] = str(tmp_path / words[index])
    monkeypatch.chdir(ROOT)
    assert main(words) == 0
    assert (tmp_path / "model_card.md").read_text() == (ROOT / "model_card.md").read_text()
    images = {path.name for path in (ROOT / "docs" / "card").iterdir()}
    assert {path.name for path in (tmp_path / "docs" / "card").iterdir()} == images


def test_word_embeddings_are_shared_with_the_output_layer_only_if_they_are_tied(make_model, tmp_path):
    for tied, part in ((True, "word embeddings, shared with the output layer"), (False, "word embeddings")):
        model = make_model(tie_word_embeddings=tied)
        model.save_pretrained(tmp_path)
        counts = count_parameters(tmp_path / "model.safetensors")
        assert counts[part] == model.decoder.embed_tokens.weight.numel()
        assert sum(counts.values()) == sum(each.numel() for each in model.parameters())
