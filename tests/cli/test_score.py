import json
import os
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from hf_gru_captioner.cli import main

QUICK = ("--tokenizer", "simple", "--metrics", "cider", "bleu", "diversity", "--bootstrap", "50")
REFERENCES = {1: ["a dog runs", "a brown dog"], 2: ["two children play", "children on a beach"], 3: ["a red bike"]}


@pytest.fixture
def images(make_dataset, tmp_path):
    """Folder of a dataset of seven images."""
    (tmp_path / "set" / "data").mkdir(parents=True)
    make_dataset(7).to_parquet(tmp_path / "set" / "data" / "validation-00000-of-00001.parquet")
    return tmp_path / "set"


@pytest.fixture
def coco(tmp_path):
    """COCO-format annotations, and a function that writes a result file and returns its path."""
    rows = [{"image_id": image, "caption": text} for image, texts in REFERENCES.items() for text in texts]
    images = [{"id": image} for image in REFERENCES]
    (tmp_path / "annotations.json").write_text(json.dumps({"images": images, "annotations": rows}))

    def results(name, captions):
        rows = [{"image_id": image, "caption": caption} for image, caption in captions]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        return str(tmp_path / f"{name}.json")

    return str(tmp_path / "annotations.json"), results


def test_a_checkpoint_is_scored_and_everything_that_comparisons_need_is_written(checkpoint, images, tmp_path, capsys):
    card = tmp_path / "card.md"
    card.write_text("---\nlicense: mit\n---\n# Card\n")
    where = ("--data", images, "--checkpoint", checkpoint, "--output", tmp_path / "out", "--card", card)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("someone else's notes")
    assert main(["score", *map(str, where), *QUICK, "--num-beams", "1"]) == 0
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [row["image_id"] for row in written] == list(range(7))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["generation"]["num_beams"] == 1
    assert len(metrics["checkpoint_sha256"]) == 64
    assert {"torch", "transformers", "python"} <= set(metrics["versions"])
    (system,) = metrics["systems"].values()
    assert set(system["values"]) >= {"cider", "bleu_4", "distinct_1"}
    low, high = system["intervals"]["cider"]
    assert low <= system["values"]["cider"] <= high
    assert system["signature"].startswith("tok:simple|refs:2.0|images:7|reflen:closest|ratio:")
    assert system["signature"].endswith("|num_beams:1")
    assert system["human"]["cider"] > 0
    output = capsys.readouterr().out
    assert "CIDEr" in output
    assert "human" in output
    files = [*(tmp_path / "out" / name for name in ("predictions.json", "metrics.json", "report.html")), card]
    assert output.splitlines()[-1] == f"written: {', '.join(map(str, files))}"
    assert "<html" in (tmp_path / "out" / "report.html").read_text()
    values = {result.metric_name: result.metric_value for result in ModelCard.load(card).data.eval_results}
    assert values["CIDEr"] == round(100 * system["values"]["cider"], 1)


def test_result_files_of_other_systems_are_scored_side_by_side(coco, tmp_path, capsys):
    annotations, results = coco
    good = results("good", [(3, "a red bike"), (1, "a dog runs"), (2, "two children play")])
    bad = results("bad", [(1, "a red bike"), (2, "a dog"), (3, "children")])
    assert main(["score", good, bad, "--references", annotations, *QUICK, "--output", str(tmp_path / "out")]) == 0
    systems = json.loads((tmp_path / "out" / "metrics.json").read_text())["systems"]
    assert systems["good"]["values"]["bleu_1"] == pytest.approx(1)
    assert systems["bad"]["values"]["bleu_1"] < 0.5
    assert systems["bad"]["minus_first"]["cider"]["difference"] < 0
    assert "bad minus good" in capsys.readouterr().out
    assert not (tmp_path / "out" / "predictions.json").exists()


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ([(1, "a"), (2, "b")], "3"),
        ([(1, "a"), (2, "b"), (3, "c"), (9, "d")], "9"),
        ([(1, "a"), (1, "b"), (2, "b"), (3, "c")], "1"),
        ([], "empty.json"),
    ],
)
def test_result_files_that_do_not_fit_end_in_one_line(coco, capsys, captions, message):
    annotations, results = coco
    assert main(["score", results("empty", captions), "--references", annotations, *QUICK]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--references", "{annotations}"], "needs RESULTS"),
        (["{results}", "--references", "{annotations}", "--checkpoint", "x"], "--checkpoint needs the images"),
        (["{results}", "--references", "{annotations}", "--card", "x"], "--card stores the scores of a checkpoint"),
        (["{results}", "--references", "nowhere.json"], "nowhere.json"),
        (["{results}", "--references", "{annotations}", "--metrics", "spice"], "cider"),
    ],
)
def test_mistakes_end_in_one_line(coco, capsys, arguments, message):
    annotations, results = coco
    path = results("system", [(1, "a"), (2, "b"), (3, "c")])
    assert main(["score", *(each.format(annotations=annotations, results=path) for each in arguments)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error


@pytest.fixture
def no_captioning(monkeypatch):
    def caption_references(*_, **settings):
        raise AssertionError("captioned before everything was checked")

    monkeypatch.setattr("hf_gru_captioner.scoring_run.caption_references", caption_references)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "cidre"], "Found metrics ['cidre']. Choose one or more of cider, meteor"),
        (["--bootstrap", "-1"], "--bootstrap must be at least 0, found -1"),
        (["--synonyms", "{folder}/none.yaml"], "none.yaml"),
        (["--synonyms", "{folder}/bad.yaml"], "must map each label"),
        (["--card", "{folder}/none.md"], "none.md: no such file. gru-captioner card"),
        (["--card", "{folder}/bad.md"], "bad.md, between its lines ---, are malformed"),
        (["--training-data", "{folder}/none"], "none"),
        (["--output", "{folder}/bad.md"], "bad.md"),
        (["--keep", "--checkpoint", "{folder}"], "has no model.safetensors: score the checkpoint that it was"),
        (["{folder}/none.json", "--checkpoint", "{checkpoint}"], "none.json"),
        (["{folder}/few.json", "--checkpoint", "{checkpoint}"], "no result for 6 images"),
        (["{folder}/checkpoint.json", "--checkpoint", "{checkpoint}"], "two systems are called checkpoint"),
    ],
)
def test_mistakes_are_found_before_anything_is_captioned(
    images, checkpoint, tmp_path, capsys, no_captioning, arguments, message
):
    (tmp_path / "bad.yaml").write_text("- a list")
    (tmp_path / "bad.md").write_text("---\nlicense: [\n---\n")
    (tmp_path / "few.json").write_text('[{"image_id": 0, "caption": "a dog"}]')
    (tmp_path / "checkpoint.json").write_text((tmp_path / "few.json").read_text())
    checkpoint = checkpoint.rename(tmp_path / "checkpoint")
    options = [each.format(folder=tmp_path, checkpoint=checkpoint) for each in arguments]
    where = () if "--output" in options else ("--output", str(tmp_path / "out"))
    assert main(["score", *options, "--data", str(images), *(() if "--metrics" in options else QUICK[:4]), *where]) == 2
    error = capsys.readouterr().err.splitlines()[-1]  # after progress bars
    assert error.startswith("gru-captioner: ")
    assert message in error


@pytest.mark.parametrize(
    ("java", "message"),
    [
        (
            ["sh", "-c", "echo out of memory; exit 1"],
            "gru-captioner: The PTB tokenizer returned 1 lines for 1 captions and exit code 1: out of memory",
        ),
        (None, "gru-captioner: No Java"),
    ],
)
def test_java_is_tried_before_anything_is_captioned(images, monkeypatch, capsys, no_captioning, java, message):
    def java_command(*_):
        if java is None:
            raise ImportError("No Java")
        return [*java]

    monkeypatch.setattr("hf_gru_captioner.evaluation.ptb.java_command", java_command)
    for options in (["--metrics", "cider"], ["--metrics", "meteor", "--tokenizer", "simple"]):
        assert main(["score", "--data", str(images), *options]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_captions_are_kept_when_they_cannot_be_scored(checkpoint, images, tmp_path, monkeypatch, capsys):
    def score_systems(*_, **options):
        raise ChildProcessError("out of memory")

    monkeypatch.setattr("hf_gru_captioner.evaluation.scoring.score_systems", score_systems)
    where = ("--data", images, "--checkpoint", checkpoint, "--output", tmp_path / "out")
    assert main(["score", *map(str, where), *QUICK]) == 2
    assert "gru-captioner: out of memory" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 7


@pytest.mark.slow
def test_two_processes_write_what_one_writes(checkpoint, images, tmp_path):
    arguments = ["--data", str(images), "--checkpoint", str(checkpoint), *QUICK]
    assert main(["score", *arguments, "--output", str(tmp_path / "one")]) == 0
    code = (
        f"from hf_gru_captioner.cli import main; main(['score', *{arguments!r}, '--output', {str(tmp_path / 'two')!r}])"
    )
    (tmp_path / "run.py").write_text(code)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            tmp_path / "run.py",
        ],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=240,
    )
    for name in ("predictions.json", "metrics.json"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()


def test_labels_that_captions_name_are_counted(checkpoint, make_dataset, tmp_path, capsys):
    rows = make_dataset(3).add_column("labels", [["dog", "dog"], ["person"], None])
    (tmp_path / "set" / "data").mkdir(parents=True)
    rows.to_parquet(tmp_path / "set" / "data" / "validation-00000-of-00001.parquet")
    (tmp_path / "synonyms.yaml").write_text("person: [children, man]\n")
    results = [
        {"image_id": 0, "caption": "a dog"},
        {"image_id": 1, "caption": "two dogs"},
        {"image_id": 2, "caption": ""},
    ]
    (tmp_path / "theirs.json").write_text(json.dumps(results))
    where = ("--data", tmp_path / "set", "--output", tmp_path / "out", "--synonyms", tmp_path / "synonyms.yaml")
    assert main(["score", str(tmp_path / "theirs.json"), *map(str, where), *QUICK]) == 0
    labels = json.loads((tmp_path / "out" / "metrics.json").read_text())["labels"]
    by_label = {record.pop("label"): record for record in labels["records"]}
    assert by_label["dog"] == {"images": 1, "named": 1, "said": 2, "wrong": 1}
    assert by_label["person"] == {"images": 1, "named": 0, "said": 0, "wrong": 0}
    assert (labels["chair_i"], labels["chair_s"], labels["images"]) == (0.5, 0.5, 2)
    assert "Not there (CHAIR): 50.0 % of the labels" in capsys.readouterr().out
    assert main(["score", "--checkpoint", str(checkpoint), "--keep", *map(str, where), *QUICK]) == 0
    assert json.loads((checkpoint / "scores.json").read_text())["scores"][0]["labels"]["images"] == 2


def test_a_table_without_splits_says_which_part_was_scored_and_how_to_score_all(
    checkpoint, make_photo, tmp_path, capsys
):
    for number in range(7):
        make_photo(number).save(tmp_path / f"{number}.png")
    (tmp_path / "mine.csv").write_text("file,caption\n" + "".join(f"{number}.png,a dog runs\n" for number in range(7)))
    command = ("score", "--data", str(tmp_path / "mine.csv"), "--checkpoint", str(checkpoint), *QUICK)
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "|images:1|" in output
    assert f"{tmp_path / 'mine.csv'} has no split validation; scored: 1 image that training uses" in output
    assert main([*command, "--output", str(tmp_path / "out"), "--split", "all"]) == 0
    output = capsys.readouterr().out
    assert "|images:7|" in output
    assert "--split all" not in output
