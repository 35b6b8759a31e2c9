import json
import shutil

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    BertModel,
)

from hf_gru_captioner import Captioner
from hf_gru_captioner.checkpoint import UnsafeWeightsError
from hf_gru_captioner.errors import UsageError
from hf_gru_captioner.labelling.teacher import CHAT_PROMPT, TeacherOptions, load_teacher

FAMILIES = ["blip", "blip-2", "git", "vit-gpt2", "florence2", "idefics3"]
SHORT = TeacherOptions(max_new_tokens=6)


@pytest.fixture
def photos(make_photo):
    return [make_photo(seed, 60, 40) for seed in range(3)]


def texts(written):
    return [[draft.text for draft in of_photo] for of_photo in written]


def copy_of(folder, target):
    shutil.copytree(folder, target)
    return target


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_writes_the_same_of_a_photo_in_any_batch(teachers, photos, family):
    teacher = load_teacher(str(teachers(family)), SHORT)
    for number in (1, 3):
        together = teacher.write(photos, ["a", "b", "c"], number)
        assert [len(of_photo) for of_photo in together] == [number] * 3
        assert teacher.write(photos[1:2], ["b"], number) == together[1:2]
    assert len({text for of_photo in texts(together) for text in of_photo}) > 5  # of nine samples
    vocabulary = set(AutoTokenizer.from_pretrained(teachers(family)).get_vocab())
    words = {word for of_photo in texts(together) for text in of_photo for word in text.split()}
    assert words <= {word for word in vocabulary if word.isalpha()}  # no special token, no prompt


def test_blip_writes_what_transformers_own_example_writes(teachers, photos):
    model = AutoModelForImageTextToText.from_pretrained(teachers("blip")).eval()
    processor = AutoProcessor.from_pretrained(teachers("blip"))
    sequences = model.generate(**processor(images=photos, return_tensors="pt"), num_beams=3, max_new_tokens=6)
    expected = [[text] for text in processor.batch_decode(sequences, skip_special_tokens=True)]
    assert texts(load_teacher(str(teachers("blip")), SHORT).write(photos, list("abc"), 1)) == expected
    assert any(text for (text,) in expected)


def test_a_model_with_a_tokenizer_and_no_processor_writes_what_its_example_writes(teachers, photos):
    model = AutoModelForImageTextToText.from_pretrained(teachers("vit-gpt2")).eval()
    pixel_values = AutoImageProcessor.from_pretrained(teachers("vit-gpt2"))(photos, return_tensors="pt").pixel_values
    sequences = model.generate(pixel_values, num_beams=2, max_length=7)
    tokenizer = AutoTokenizer.from_pretrained(teachers("vit-gpt2"))
    expected = [[text.strip()] for text in tokenizer.batch_decode(sequences, skip_special_tokens=True)]
    options = TeacherOptions(max_new_tokens=6, num_beams=2)
    assert texts(load_teacher(str(teachers("vit-gpt2")), options).write(photos, list("abc"), 1)) == expected


def test_a_chat_model_is_asked_by_its_template_and_answers_only(teachers, photos):
    teacher = load_teacher(str(teachers("idefics3")), SHORT)
    assert teacher.prompt == CHAT_PROMPT
    asked = []
    generate = teacher._model.generate
    teacher._model.generate = lambda **inputs: asked.append(inputs["input_ids"]) or generate(**inputs)
    teacher.write(photos, list("abc"), 1)
    question = teacher._tokenizer.decode(asked[0][0])
    assert "describe this image" in question.lower() or "<unk>" in question
    other = load_teacher(str(teachers("idefics3")), TeacherOptions(max_new_tokens=6, prompt="what is on the beach"))
    assert texts(other.write(photos, list("abc"), 1)) != texts(teacher.write(photos, list("abc"), 1))


def test_families_that_need_a_prompt_have_one_and_others_go_on_from_it(teachers, photos):
    assert load_teacher(str(teachers("florence2")), SHORT).prompt == "<CAPTION>"
    plain = load_teacher(str(teachers("blip")), SHORT)
    assert plain.prompt is None
    prompted = load_teacher(str(teachers("blip")), TeacherOptions(max_new_tokens=6, prompt="a photo of"))
    assert all(text.startswith("a photo of") for (text,) in texts(prompted.write(photos, list("abc"), 1)))
    with pytest.raises(UsageError, match="takes no prompt: omit --prompt"):
        load_teacher(str(teachers("vit-gpt2")), TeacherOptions(prompt="a photo of"))


def test_a_checkpoint_of_ours_writes_what_the_captioner_writes(checkpoint, photos):
    teacher = load_teacher(str(checkpoint))
    captioner = Captioner.from_pretrained(checkpoint)
    images = [captioner.load_image(photo) for photo in photos]
    expected = [[caption.text] for caption in captioner(images)]
    assert texts(teacher.write(images, list("abc"), 1)) == expected
    together = teacher.write(images, list("abc"), 3)
    assert sorted(texts(teacher.write(images[1:2], ["b"], 3))[0]) == sorted(texts(together)[1])
    assert len({text for of_photo in texts(together) for text in of_photo}) > 3
    assert teacher.name == checkpoint.name
    assert teacher.revision.startswith("sha256:")
    with pytest.raises(UsageError, match="takes no prompt"):
        load_teacher(str(checkpoint), TeacherOptions(prompt="a photo of"))


def test_a_caption_that_was_not_finished_is_told(teachers, photos):
    written = load_teacher(str(teachers("blip")), TeacherOptions(max_new_tokens=2)).write(photos, list("abc"), 3)
    drafts = [draft for of_photo in written for draft in of_photo]
    assert any(draft.is_cut for draft in drafts)
    assert all(draft.is_cut for draft in drafts if len(draft.text.split()) == 2)
    ended = load_teacher(str(teachers("florence2")), TeacherOptions(max_new_tokens=30)).write(photos, list("abc"), 3)
    assert not all(draft.is_cut for of_photo in ended for draft in of_photo)


def test_files_of_one_commit_are_fetched_and_no_others(hub, teachers, photos):
    files = {path.name: path.read_bytes() for path in teachers("blip").iterdir()}
    more = {"pytorch_model.bin": b"pickle", "modeling.py": b"raise SystemExit", "tf_model.h5": b"tensorflow"}
    commit = hub.publish("me/teacher", {**files, **more})
    teacher = load_teacher("me/teacher", SHORT)
    assert (teacher.name, teacher.revision) == ("me/teacher", commit)
    assert texts(teacher.write(photos, list("abc"), 1)) == texts(
        load_teacher(str(teachers("blip")), SHORT).write(photos, list("abc"), 1)
    )
    fetched = {path.rsplit("/", 1)[-1] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path}
    assert "model.safetensors" in fetched
    assert not fetched & more.keys()


def test_a_pickle_is_refused_and_the_converted_weights_are_named(hub, teachers, monkeypatch, tmp_path):
    files = {path.name: path.read_bytes() for path in teachers("blip").iterdir()}
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    hub.publish("me/teacher", files)
    with pytest.raises(UnsafeWeightsError, match="the teacher me/teacher has no safetensors weights"):
        load_teacher("me/teacher", SHORT)

    class Discussion:
        num, title, status = 7, "Adding `safetensors` variant of this model", "open"

    monkeypatch.setattr("huggingface_hub.HfApi.get_repo_discussions", lambda *_, **__: iter([Discussion()]))
    with pytest.raises(UnsafeWeightsError, match=r"add --revision refs/pr/7$"):
        load_teacher("me/teacher", SHORT)


def test_code_of_a_teacher_runs_only_when_it_is_asked_for(teachers, tmp_path):
    folder = copy_of(teachers("blip"), tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nfrom transformers import BlipConfig\n"
    )
    with pytest.raises(UsageError, match=r"has its own code.*add --trust-remote-code"):
        load_teacher(str(folder), SHORT)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="own"):
        load_teacher(str(folder), TeacherOptions(trust_remote_code=True))
    assert (tmp_path / "ran").exists()


def test_what_leads_elsewhere_is_refused(teachers, tmp_path):
    folder = copy_of(teachers("blip"), tmp_path / "adapter")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "me/other"}')
    with pytest.raises(UsageError, match="an adapter of another model: merge it"):
        load_teacher(str(folder), SHORT)
    (folder / "adapter_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "backbone": "me/other"}))
    with pytest.raises(ValueError, match="leads out of the checkpoint"):
        load_teacher(str(folder), SHORT)


def test_what_is_no_captioner_is_said(teachers, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder nor"):
        load_teacher(str(tmp_path / "nothing"), SHORT)
    with pytest.raises(UsageError, match=r"is not a captioner: it has no config\.json"):
        load_teacher(str(tmp_path), SHORT)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=10, **sizes)).save_pretrained(tmp_path / "bert")
    with pytest.raises(UsageError, match="of type 'bert', which doesn't caption images"):
        load_teacher(str(tmp_path / "bert"), SHORT)


def test_a_teacher_that_lacks_weights_is_refused(teachers, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copy_of(teachers("blip"), tmp_path / "part")
    weights = load_file(folder / "model.safetensors")
    del weights["text_decoder.bert.encoder.layer.0.attention.self.query.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lacks weights of a blip \(1, such as text_decoder\.bert"):
        load_teacher(str(folder), SHORT)


def test_settings_out_of_range_are_refused():
    for settings in ({"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(UsageError, match="above 0"):
            TeacherOptions(**settings)


def test_half_precision_gives_captions_too(teachers, photos):
    options = TeacherOptions(max_new_tokens=6, dtype="bfloat16")
    teacher = load_teacher(str(teachers("blip")), options)
    assert teacher._model.dtype == torch.bfloat16
    assert len(teacher.write(photos, list("abc"), 2)) == 3
