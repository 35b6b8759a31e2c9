import json

import pytest

from hf_gru_captioner import Captioner
from hf_gru_captioner.errors import UsageError
from hf_gru_captioner.evaluation import score_captions
from hf_gru_captioner.hub import read_scores
from hf_gru_captioner.scoring_run import caption_references, load_references, read_references, score

QUICK = {"metrics": ("cider", "bleu"), "tokenizer": "simple", "bootstrap": 20}


@pytest.fixture
def data(make_dataset, tmp_path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    make_dataset(7).to_parquet(tmp_path / "set" / "data" / "validation-00000-of-00001.parquet")
    return str(tmp_path / "set")


def test_a_checkpoint_and_a_result_file_are_scored_from_python(checkpoint, data, tmp_path):
    references = load_references(data)
    captions = caption_references(references, str(checkpoint), num_beams=1, batch_size=3)
    expected = Captioner.from_pretrained(checkpoint)([references.image(index) for index in range(7)], num_beams=1)
    assert [caption.text for caption in captions.captions] == [caption.text for caption in expected]
    assert captions.decoding == "num_beams:1"
    rows = [{"image_id": image_id, "caption": texts[0]} for image_id, texts in references.captions.items()]
    (tmp_path / "copied.json").write_text(json.dumps(rows))
    run = score(references, captions, results=[tmp_path / "copied.json"], **QUICK)
    assert list(run.scores.scores) == [captions.name, "copied"]
    alone = score_captions(
        [caption.text for caption in expected], list(references.captions.values()), decoding="num_beams:1", **QUICK
    )
    own = run.scores.scores[captions.name]
    assert (own.values, own.intervals, own.signature) == (alone.values, alone.intervals, alone.signature)
    assert run.scores.comparisons["copied"]["cider"].difference > 0
    run.save(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"predictions.json", "metrics.json", "report.html"}
    run.keep()
    (kept,) = read_scores(checkpoint)
    assert kept["values"] == alone.values
    assert sum(record["images"] for record in kept["by_length"]) == 7


def test_without_a_checkpoint_there_is_nothing_to_keep(tmp_path):
    annotations = [{"image_id": 1, "caption": "a dog runs"}, {"image_id": 2, "caption": "a red bike"}]
    (tmp_path / "annotations.json").write_text(json.dumps({"annotations": annotations}))
    (tmp_path / "ours.json").write_text(json.dumps(annotations))
    references = read_references(tmp_path / "annotations.json")
    run = score(references, results=[tmp_path / "ours.json"], **QUICK)
    assert run.scores.scores["ours"].values["bleu_1"] == pytest.approx(1)
    for store in (run.keep, lambda: run.write_model_index(tmp_path / "card.md")):
        with pytest.raises(UsageError, match="no checkpoint was scored"):
            store()
    with pytest.raises(UsageError, match="there is nothing to score"):
        score(references, **QUICK)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "ours.json").write_text(json.dumps(annotations))
    with pytest.raises(UsageError, match="two systems are called ours"):
        score(references, results=[tmp_path / "ours.json", tmp_path / "other" / "ours.json"], **QUICK)


def test_images_of_the_same_id_are_numbered_and_result_files_have_to_name_each(checkpoint, make_dataset, tmp_path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    rows = make_dataset(4).remove_columns("image_id").add_column("image_id", ["shirt", "hat", "shirt", "shirt.2"])
    rows.to_parquet(tmp_path / "set" / "data" / "validation-00000-of-00001.parquet")
    references = load_references(str(tmp_path / "set"))
    names = ["shirt", "hat", "shirt.2", "shirt.2.2"]
    assert list(references.captions) == names
    assert [references.captions[name] for name in names] == list(rows["captions"])
    captions = caption_references(references, str(checkpoint), num_beams=1)
    run = score(references, captions, **QUICK)
    run.save(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [row["image_id"] for row in written] == names
    again = score(references, results=[tmp_path / "out" / "predictions.json"], **QUICK)
    assert again.scores.scores["predictions"].values == run.scores.scores[captions.name].values
    for ids in (["shirt", "hat"], ["shirt", "hat", "shirt", "shirt.2"]):
        (tmp_path / "theirs.json").write_text(json.dumps([{"image_id": each, "caption": "a dog"} for each in ids]))
        with pytest.raises(UsageError, match=r"same image_id: in results, .* numbered, .* as 'shirt\.2'"):
            score(references, results=[tmp_path / "theirs.json"], **QUICK)
