"""push -> another machine -> caption -> fine-tune -> push -> a third machine, with the real client."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CAPTION = """
import json
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText
from transformers import AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer, pipeline
name, photo, *revision = sys.argv[1:]
location = {"trust_remote_code": True} | ({"revision": revision[0]} if revision else {})
assert AutoConfig.from_pretrained(name, **location).model_type == "gru_captioner"
processor = AutoProcessor.from_pretrained(name, **location)
assert type(processor.image_processor) is type(AutoImageProcessor.from_pretrained(name, **location))
assert AutoTokenizer.from_pretrained(name, **location).get_vocab() == processor.tokenizer.get_vocab()
captions = []
for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    model = auto_class.from_pretrained(name, **location)
    captions += processor.batch_decode(model.generate(**processor(images=photo)))
for task in ((), ("image-to-text",)):
    captions += [pipeline(*task, model=name, **location)(photo)[0]["generated_text"]]
print(json.dumps(captions))
"""

FINE_TUNE_AND_PUSH = """
import json, torch
from transformers import AutoModel, AutoProcessor
name, photo, target = sys.argv[1:]
processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
model = AutoModel.from_pretrained(name, trust_remote_code=True)
batch = processor(images=photo, text=["two children play on the beach"])
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
losses = []
for _ in range(40):
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
assert losses[-1] < 0.8 * losses[0], losses
captions = processor.batch_decode(model.generate(**processor(images=photo)))
model.push_to_hub(target)
processor.push_to_hub(target)
print(json.dumps(captions))
"""


def push(hub, *arguments, token="hf_write") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "push_to_hub.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **hub.environment(token)},
    )


@pytest.mark.slow
def test_captions_are_the_same_wherever_the_checkpoint_goes(hub, checkpoint, photo, tmp_path, run_plainly):
    picture = tmp_path / "photo.png"
    photo.save(picture)
    pushed = push(hub, checkpoint, "me/captioner", "--images", picture, "--license", "apache-2.0")
    assert pushed.returncode == 0, pushed.stderr
    first = hub.repository("me/captioner").branches["main"]
    assert pushed.stdout.strip().endswith(first)
    assert hub.large_files

    here = run_plainly(CAPTION, checkpoint, picture)
    assert len(set(here)) == 1
    online = hub.environment()
    assert run_plainly(CAPTION, "me/captioner", picture, home="second", **online) == here
    assert run_plainly(CAPTION, "me/captioner", picture, home="second", HF_HUB_OFFLINE="1") == here  # from its cache

    tuned = run_plainly(FINE_TUNE_AND_PUSH, "me/captioner", picture, "me/captioner", home="second", **online)
    assert tuned[0] not in here
    repository = hub.repository("me/captioner")
    before, after = repository.files(first), repository.files()
    assert run_plainly(CAPTION, "me/captioner", picture, home="third", **online) == tuned * 5
    assert run_plainly(CAPTION, "me/captioner", picture, first, home="third", **online) == here
    kept = {name for name in before if name.endswith((".py", ".jpg", ".md"))}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert json.loads(after["config.json"])["custom_pipelines"]

    elsewhere = run_plainly(FINE_TUNE_AND_PUSH, "me/captioner", picture, "me/tuned", home="third", **online)
    assert run_plainly(CAPTION, "me/tuned", picture, home="fourth", **online) == elsewhere * 5
    assert {name for name in before if name.endswith(".py")} <= set(hub.repository("me/tuned").files())
    assert not [path for _, path, status in hub.requests if status == 500]


def test_the_dry_run_lists_every_file_and_sends_nothing(hub, checkpoint):
    shown = push(hub, checkpoint, "me/captioner", "--dry-run", token=None)
    assert shown.returncode == 0, shown.stderr
    for path in checkpoint.iterdir():
        assert f"{path.stat().st_size:,}  {path.name}" in shown.stdout
    assert "# captioner" in shown.stdout
    assert "license: other" in shown.stdout
    assert not hub.requests


@pytest.mark.parametrize(
    ("arguments", "token", "said"),
    [
        (["me/captioner"], None, "no access token: run `hf auth login`"),
        (["someone/captioner"], "hf_write", "no write permission for someone/captioner"),
        (["captioner"], "hf_write", "it has the form user/name"),
        (["me/captioner", "--terms", "nowhere.md"], "hf_write", "nowhere.md: no such file"),
    ],
)
def test_what_goes_wrong_is_one_line(hub, checkpoint, arguments, token, said):
    failed = push(hub, checkpoint, *arguments, token=token)
    assert failed.returncode == 2
    (line,) = [line for line in failed.stderr.splitlines() if "Error" not in line]
    assert line.startswith("gru-captioner: ")
    assert said in line
    assert "hf_write" not in failed.stderr
    assert not hub.repositories
