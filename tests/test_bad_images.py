"""All entry points get the same bad images; each returns a picture or a one-line error, in little memory."""

import csv
import gc
import importlib.util
import io
import json
import os
import subprocess
import sys
import threading
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from hf_gru_captioner import untrusted_images
from hf_gru_captioner.cli import main
from hf_gru_captioner.cli.find_images import find_images
from hf_gru_captioner.data import RegionCache, decode_images, load_captions, stream_captions
from hf_gru_captioner.model import image_loading_gru_captioner, load_image
from hf_gru_captioner.untrusted_images import Limits, RefusedError, open_image
from hf_gru_captioner.web.batch import Sent, images_of

MAKER = Path(__file__).parent / "support" / "bad_images.py"
_spec = importlib.util.spec_from_file_location("bad_images", MAKER)
bad_images = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bad_images)

MAX_MEMORY = 512 << 20  # bytes; two threads load photos at once, and a caption needs less than 200 MB
MAX_SECONDS = 300  # after which a process counts as hung; it takes a tenth of that

# Looks at each image in a process of its own, which has nothing but load_image: its memory is what it took at most.
LOOK = """
import importlib.util, json, os, resource, sys, warnings
from PIL import EpsImagePlugin
from hf_gru_captioner.model.image_loading_gru_captioner import load_image

def never(*arguments, **settings):
    os.abort()

EpsImagePlugin.Ghostscript = never
warnings.simplefilter("ignore")
paths, doors = json.load(sys.stdin)
for path in paths:
    sources = {"path": (path, None), "path, scaled": (path, (224, 224))}
    if os.path.isfile(path):
        with open(path, "rb") as file:
            sources["bytes"] = (file.read(), None)
    for door in sources.keys() & doors:
        source, size = sources[door]
        try:
            image = load_image(source, size=size)
            assert image.mode == "RGB" and size in (None, image.size)
            said = None
        except (OSError, ValueError) as error:
            said = str(error)
        print(json.dumps([path, door, said]), flush=True)
assert not {"torch", "transformers"} & set(sys.modules)
try:  # the most of this process alone; what getrusage says may be the parent's
    with open("/proc/self/status") as file:
        most = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
except OSError:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
print(most * 1024)
"""


DOORS = ["path", "path, scaled", "bytes"]


def look_at(paths: list[str], doors: list[str] = DOORS) -> tuple[list[list], int]:
    """Path, entry point and error (None for a picture) of each; peak memory in bytes."""
    process = subprocess.run(
        [sys.executable, "-c", LOOK],
        input=json.dumps([paths, doors]),
        capture_output=True,
        text=True,
        timeout=MAX_SECONDS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.returncode == 0, (process.stdout.splitlines()[-1:], process.stderr[-2000:])
    assert process.stderr == ""  # libraries below Pillow have their own way there
    *lines, most = process.stdout.splitlines()
    return [json.loads(line) for line in lines], int(most)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> dict[str, str]:
    """Kind of each image by its path."""
    return dict(bad_images.make_corpus(tmp_path_factory.mktemp("bad") / "images"))


@pytest.fixture(scope="module")
def looked_at(corpus):
    return look_at(list(corpus))


@pytest.fixture
def no_programs(monkeypatch):
    """Fails if Ghostscript is run, whether installed or not."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program was run"))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def in_one_line(text: str) -> str:
    return " ".join(text.split())


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    assert one.size == other.size
    return float(np.abs(np.asarray(one, int) - np.asarray(other, int)).mean())


def judge(kind: str, is_read: bool) -> None:
    assert is_read or kind not in bad_images.SOUND, f"{kind} is not read"
    assert not is_read or kind not in bad_images.HOPELESS, f"{kind} passes for a picture"


def test_the_corpus_has_what_it_should(corpus):
    counts = Counter(corpus.values())
    formats = {kind.removeprefix("cut ") for kind in counts if kind.startswith("cut ")}
    assert {"JPEG", "JPEG progressive", "PNG", "WEBP", "GIF", "TIFF"} <= formats
    assert min(counts[f"cut {name}"] for name in formats) > 10
    expected = (bad_images.SOUND | bad_images.HOPELESS) - {"unreadable"} | {"vast", "metadata bomb", "torn odd name"}
    assert expected <= set(counts)
    assert counts["orientation"] == 8 * 4
    assert os.geteuid() == 0 or counts["unreadable"] == 1


@pytest.mark.parametrize("door", DOORS)
def test_load_image_gives_a_picture_or_says_in_one_line_what_is_wrong(looked_at, corpus, door):
    answers = [answer for answer in looked_at[0] if answer[1] == door]
    assert len(answers) == (len(corpus) if door != "bytes" else sum(map(os.path.isfile, corpus)))
    for path, _, said in answers:
        judge(corpus[path], said is None)
        if said is not None:
            shown = ("the image",) if door == "bytes" else (in_one_line(path), in_one_line(repr(path)[1:-1]))
            assert in_one_line(said).startswith((*shown, *map(repr, shown))), said
            assert in_one_line(said).endswith(".")
            assert not said.endswith(".."), said
            assert "\n" not in said.replace(path, "")


def test_load_image_takes_little_memory(looked_at):
    assert looked_at[1] < MAX_MEMORY


def test_pictures_just_below_the_limit_take_little_memory(tmp_path):
    for name, content, _ in bad_images.just_right():
        (tmp_path / name).write_bytes(content)
        answers, most = look_at([str(tmp_path / name)], ["path, scaled"])
        assert [said for _, _, said in answers] == [None]
        assert most < MAX_MEMORY, name


@pytest.mark.parametrize("file_format", ["jpeg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_camera_says_and_once(corpus, file_format, orientation):
    (path,) = [path for path in corpus if path.endswith(f"/orientation {orientation}.{file_format}")]
    assert mean_difference(load_image(path), bad_images.photo()) < 10
    opened = Image.open(path)
    opened.load()
    assert mean_difference(load_image(opened), bad_images.photo()) < 10


def test_no_file_stays_open(corpus):
    paths = [path for path, kind in corpus.items() if os.path.isfile(path) and kind != "vast"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ResourceWarning)
        for path in paths[::3]:
            with suppress(ValueError):
                load_image(path)
        gc.collect()
    assert [str(each.message) for each in caught] == []


@pytest.fixture
def run(checkpoint, capfd):
    """Runs a command with the tiny checkpoint; returns exit code, output and error lines."""

    def run(command, *arguments):
        capfd.readouterr()
        with warnings.catch_warnings(record=True) as caught:  # pytest would keep them from the terminal
            warnings.simplefilter("default")
            code = main([command, "--checkpoint", str(checkpoint), *map(str, arguments)])
        assert [each for each in caught if "PIL" in each.filename] == []
        output = capfd.readouterr()
        return code, output.out, output.err.splitlines()

    return run


def check_lines(corpus, paths, code, output, errors, told=()) -> None:
    records = [json.loads(line) for line in output.split("\n")[:-1]]
    assert (code, errors) == (2, [f"gru-captioner: {line}" for line in told])
    assert [record["path"] for record in records] == paths
    for record in records:
        path = record["path"]
        is_read = set(record) == {"path", "caption", "score", "backend"}
        judge(corpus[path], is_read)
        if not is_read:
            assert set(record) == {"path", "error"}
            assert record["error"].isprintable()
            shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in in_one_line(path))
            assert shown in record["error"] or repr(path)[1:-1] in record["error"]


def test_captions_of_a_folder_are_a_line_a_photo(run, corpus, no_programs):
    folder = os.path.dirname(next(iter(corpus)))
    found = find_images([folder])
    inside = found.paths
    assert len(inside) > 700
    assert not {corpus[path] for path in inside} & {"pipe", "socket", "folder", "link loop", "dangling link"}
    check_lines(corpus, inside, *run("caption", folder, "--json"), told=found.summary())


def test_captions_of_named_photos_are_a_line_a_photo(run, corpus, no_programs):
    paths = [path for path, kind in corpus.items() if not kind.startswith("cut ") and kind != "folder"]
    paths += [path for path, kind in corpus.items() if kind.startswith("cut ")][::10]
    check_lines(corpus, paths, *run("caption", "--json", "--", *paths))


def test_without_json_there_is_a_line_a_photo_too(run, corpus):
    paths = [path for path, kind in corpus.items() if kind in ("torn odd name", "odd name", "pipe", "vanished")]
    code, output, errors = run("caption", "--", *paths)
    assert code == 2
    assert len(output.split("\n")) - 1 + len(errors) == len(paths)
    assert all(line.startswith("gru-captioner: ") and line.isprintable() for line in errors)


def test_names_with_a_leading_dash_are_captioned_where_they_lie(run, corpus, monkeypatch):
    monkeypatch.chdir(os.path.dirname(next(iter(corpus))))
    code, output, _ = run("caption", "--json", "./-rf.png", "--", "--checkpoint=x.png", "~.png", "http:nowhere.png")
    assert code == 0
    assert len(output.splitlines()) == 4


def test_a_photo_that_vanishes_after_it_was_listed_is_said_to_be_gone(run, photo, tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        photo.save(tmp_path / name)

    def find_and_lose(patterns, recursive):
        found = find_images(patterns, recursive)
        (tmp_path / "a.png").unlink()
        return found

    monkeypatch.setattr("hf_gru_captioner.cli.find_images.find_images", find_and_lose)
    code, output, errors = run("caption", tmp_path)
    assert code == 2
    assert output.startswith(f"{tmp_path / 'b.png'}: ")
    assert errors == [f"gru-captioner: {tmp_path / 'a.png'}: no such file."]


def test_a_photo_that_vanishes_before_its_attention_is_drawn_is_said_to_be_gone(run, photo, tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        photo.save(tmp_path / name)
    from hf_gru_captioner.inference import prefetch

    def caption_and_lose(captioner, paths, **settings):
        results = list(caption_all(captioner, paths, **settings))
        (tmp_path / "a.png").unlink()
        return results

    caption_all = prefetch.caption_all
    monkeypatch.setattr(prefetch, "caption_all", caption_and_lose)
    code, output, errors = run("caption", tmp_path, "--attention", tmp_path / "drawn")
    assert code == 2
    assert len(output.splitlines()) == 1
    assert errors == [f"gru-captioner: {tmp_path / 'a.png'}: no such file."]
    assert os.listdir(tmp_path / "drawn") == ["b.png.attention.png"]


def test_attention_of_photos_with_the_longest_names_is_drawn(run, photo, tmp_path):
    for name in (f"{'a' * 250}1.png", f"{'a' * 250}2.png", "é" * 125 + ".png"):
        photo.save(tmp_path / name)
    code, _, errors = run("caption", tmp_path, "--attention", tmp_path / "drawn")
    assert (code, errors) == (0, [])
    assert len(os.listdir(tmp_path / "drawn")) == 3


def sheet_of(corpus, folder: Path, kinds=None, every: int = 1) -> tuple[Path, dict[str, str]]:
    """A table of these photos, each with a caption, and the kind of each."""
    listed = {}
    for index, (path, kind) in enumerate(corpus.items()):
        wanted = kind in kinds if kinds else not kind.startswith("cut ") or index % every == 0
        if wanted and path.isascii() and path == path.strip():  # a table is UTF-8, and its cells have no margins
            listed[path] = kind
    with (folder / "test.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "caption"))
        writer.writerows((path, "a dog runs") for path in listed)
    return folder / "test.csv", listed


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("read", [load_captions, stream_captions])
def test_a_source_keeps_the_photos_that_can_be_read_and_no_others(corpus, tmp_path, no_programs, read):
    table, listed = sheet_of(corpus, tmp_path, every=5)
    rows = list(read(table, "test", max_skipped=1))
    kept = {row["image_id"] for row in rows}
    for path, kind in listed.items():
        if kind != "broken EXIF":  # `datasets` can't turn some of them
            judge(kind, path.replace("\\", "/") in kept)  # as paths of Windows are written too
    for row in rows:
        assert load_image(row["image"]).mode == "RGB"  # as the encoder will


@pytest.mark.parametrize("kind", sorted(bad_images.HOPELESS - {"unreadable"}))
def test_a_source_of_bad_photos_names_them_and_says_what_to_do(corpus, tmp_path, no_programs, kind):
    table, listed = sheet_of(corpus, tmp_path, kinds={kind})
    with table.open("a") as file:
        good = next(path for path, other in corpus.items() if other == "16-bit grey")
        file.write(f"{good},a good one\n")
    with pytest.raises(ValueError, match="repair the source, or raise max_skipped") as caught:
        load_captions(table, "test")
    assert in_one_line(next(iter(listed)))[-50:] in in_one_line(str(caught.value))


def test_a_folder_with_a_pipe_in_it_is_read_past_it(photo, tmp_path):
    for name in ("a.png", "b.png"):
        photo.save(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.png,a dog\nb.png,two dogs\n")
    rows: list = []
    reader = threading.Thread(target=lambda: rows.extend(load_captions(tmp_path, "train")), daemon=True)
    reader.start()
    reader.join(30)
    assert not reader.is_alive()
    assert len(rows) == 1  # the other is the validation split


def test_all_doors_agree_on_what_is_refused():
    assert Limits().image_pixels == image_loading_gru_captioner.MAX_PIXELS
    assert image_loading_gru_captioner.REFUSED_FORMATS == untrusted_images.REFUSED_FORMATS


@pytest.mark.parametrize(("num_scans", "is_taken"), [(50, True), (51, False), (199, False)])
def test_every_door_takes_as_many_scans(photo, tmp_path, num_scans, is_taken):
    stream = io.BytesIO()
    photo.save(stream, "JPEG", progressive=True, comment=b"\xff\xda" * 200 * is_taken)  # which begin no scan
    content = stream.getvalue()
    with Image.open(io.BytesIO(content)) as opened:
        missing = num_scans - image_loading_gru_captioner.count_scans(opened)
    last = content.rindex(b"\xff\xda")
    content = content[:-2] + content[last:-2] * missing + b"\xff\xd9"
    (tmp_path / "photo.jpg").write_bytes(content)
    (tmp_path / "test.csv").write_text("image,caption\nphoto.jpg,a dog\n")
    doors = [
        lambda: load_image(content),
        lambda: load_image(tmp_path / "photo.jpg", size=(96, 96)),
        lambda: load_image(open_image(content)),
        lambda: load_captions(tmp_path / "test.csv", "test"),
        lambda: list(stream_captions(tmp_path / "test.csv", "test")),
    ]
    for door in doors:
        if is_taken:
            door()
        else:
            with pytest.raises(ValueError, match="scans"):
                door()


@pytest.fixture
def changing(photo, tmp_path):
    """A table of three photos, and a function that damages the second."""
    for name in ("a.png", "b.png", "c.png"):
        photo.save(tmp_path / name)
    (tmp_path / "test.csv").write_text("image,caption\na.png,a dog\nb.png,two dogs\nc.png,a cat\n")
    return tmp_path / "test.csv", lambda: (tmp_path / "b.png").write_bytes(b"spoilt")


SPOILT = r"image b\.png can no longer be read \(UnidentifiedImageError: .*\): repair it"


def test_the_encoder_names_a_photo_that_was_spoilt_meanwhile(changing, model, processor, tmp_path):
    table, spoil = changing
    rows = load_captions(table, "test")
    spoil()
    with pytest.raises(ValueError, match=SPOILT):
        decode_images(rows, range(3))
    to_pixels = lambda images: processor(images=images)["pixel_values"]  # noqa: E731
    settings = processor.image_processor.to_dict()
    cache = RegionCache(tmp_path / "cache", model.encoder.vision, model.config.encoder_config, to_pixels, settings)
    with pytest.raises(ValueError, match=SPOILT):
        cache.regions(rows)


def test_the_scorer_ends_in_one_line(run, corpus, tmp_path, no_programs):
    table, listed = sheet_of(corpus, tmp_path, every=20)
    code, output, errors = run("score", "--data", table, "--split", "test", "--output", tmp_path / "out")
    said = [line for line in errors if "gru-captioner: " in line]
    assert (code, output) == (2, "")
    assert len(said) == 1
    assert f"of {len(listed)} images of {table} can't be read: " in said[0]
    assert not [line for line in errors if "Traceback" in line or "Warning" in line]


def test_the_scorer_names_a_photo_that_was_spoilt_meanwhile(run, changing, tmp_path, monkeypatch):
    from hf_gru_captioner import data

    table, spoil = changing

    def load_and_spoil(*arguments, **options):
        rows = load_captions(*arguments, **options)
        spoil()
        return rows

    monkeypatch.setattr(data, "load_captions", load_and_spoil)
    code, _, errors = run("score", "--data", table, "--split", "test", "--output", tmp_path / "out")
    said = [line for line in errors if "gru-captioner: " in line]
    assert code == 2
    assert len(said) == 1
    assert "image b.png can no longer be read" in said[0]


def test_the_demo_takes_a_picture_or_refuses_it_in_a_sentence(corpus, no_programs):
    files = [path for path in corpus if os.path.isfile(path)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sent = [Sent(str(number), Path(path)) for number, path in enumerate(files)]
        outcomes = list(images_of(sent, Limits(archive_images=len(files))))
    assert [name for name, _ in outcomes] == [name for name, _ in sent]
    for path, (_, content) in zip(files, outcomes, strict=True):
        if isinstance(content, RefusedError):
            assert str(content).endswith(".")
            judge(corpus[path], False)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load_image(open_image(content))  # what the page does; it turns a ValueError into a sentence
                is_read = True
            except ValueError:
                is_read = False
        judge(corpus[path], is_read)
