"""Datasets that refer to foreign files and URLs: each used to be read or fetched, even in a dry run or offline."""

import http.server
import io
import json
import threading

import datasets
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Image, List, Value
from huggingface_hub import constants
from PIL import Image as PILImage

from hf_gru_captioner import untrusted_images
from hf_gru_captioner.cli import main
from hf_gru_captioner.data import load_captions, stream_captions
from hf_gru_captioner.data.caption_files import ImageEntry
from hf_gru_captioner.data.origins import Origin, origin_of_hub
from hf_gru_captioner.data.recognition import locate_images

READ = pytest.mark.parametrize("read", [load_captions, stream_captions])


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def png(make_photo):
    content = io.BytesIO()
    make_photo().save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def server(png):
    """A loopback server of photos that records its requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            self.send_response(404 if "missing" in self.path else 200)
            self.end_headers()
            self.wfile.write(png)

        do_HEAD = do_GET  # noqa: N815, http.server's name

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        server.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def write(tmp_path):
    """Writes columns to a folder of parquet, as a dataset's author might."""

    def write(columns, features=None):
        folder = tmp_path / "set"
        folder.mkdir(exist_ok=True)
        made = Dataset.from_dict(columns, features=Features(features) if features else None)
        table = made.data.table.replace_schema_metadata(made.features.arrow_schema.metadata)
        pyarrow.parquet.write_table(table, folder / "test.parquet")
        return folder

    return write


@READ
@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("allow_urls", [False, True])  # offline, all the same
def test_addresses_are_asked_for_nothing(server, write, read, typed, allow_urls):
    addresses = [f"{server.address}/{number}.png" for number in range(4)]
    images = [{"path": address, "bytes": None} for address in addresses] if typed else addresses
    folder = write(
        {"image": images, "caption": ["a dog"] * 4}, {"image": Image(), "caption": Value("string")} if typed else None
    )
    with pytest.raises(ValueError, match=r"4 of 4 images of .* can't be read.*a URL, and "):
        list(read(folder, "test", allow_urls=allow_urls))
    assert server.asked == []


@pytest.mark.parametrize("command", ["train", "score"])
def test_no_command_asks_an_address(server, write, checkpoint, tmp_path, capsys, command):
    folder = write({"image": [f"{server.address}/{number}.png" for number in range(4)], "caption": ["a dog"] * 4})
    arguments = {
        "train": [
            *("--data.source", folder, "--data.train_split", "test", "--data.validation_split", "test"),
            *("--output_dir", tmp_path / "run", "--model.checkpoint", checkpoint, "--dry_run", "true"),
        ],
        "score": ["--data", folder, "--split", "test", "--checkpoint", checkpoint, "--output", tmp_path / "score"],
    }[command]
    assert main([command, *map(str, arguments)]) == 2
    option = {"train": "--data.allow-urls", "score": "--allow-urls"}[command]
    assert f"URLs are fetched only with {option}" in capsys.readouterr().err
    assert server.asked == []


@pytest.fixture
def online(monkeypatch, server):
    """The loopback server stands for the public web."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setitem(untrusted_images.ADDRESS_PORTS, "http", server.server_port)
    monkeypatch.setattr(untrusted_images, "is_public", lambda address: address == "127.0.0.1")


@READ
def test_addresses_are_fetched_once_when_the_user_says_so(server, online, write, read):
    names = ["0.png", "1.png", "missing.png"]
    folder = write({"image": [f"http://127.0.0.1/{name}" for name in names], "caption": ["a dog"] * 3})
    with pytest.warns(UserWarning, match=r"missing\.png: The server of this address answers with status 404"):
        rows = list(read(folder, "test", allow_urls=True, max_skipped=0.5))
    assert [row["image"].size for row in rows] == [(40, 30)] * 2
    assert sorted(server.asked) == ["/0.png", "/1.png", "/missing.png"]


@READ
def test_addresses_of_ones_own_table_are_fetched_too(server, online, tmp_path, read):
    (tmp_path / "test.csv").write_text("image,caption\nhttp://127.0.0.1/0.png,a dog\n")
    (row,) = read(tmp_path / "test.csv", "test", allow_urls=True)
    assert (row["image"].size, row["captions"]) == ((40, 30), ["a dog"])
    with pytest.raises(ValueError, match="a URL, and URLs are fetched only with"):
        list(read(tmp_path / "test.csv", "test"))
    assert server.asked == ["/0.png"]


@READ
def test_what_is_not_on_the_public_web_is_not_fetched_even_so(server, monkeypatch, write, read):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    hidden = [f"{server.address}/0.png", "http://127.0.0.1/", "http://169.254.169.254/latest/meta-data/"]
    folder = write({"image": hidden, "caption": ["a dog"] * 3})
    with pytest.raises(ValueError, match=r"3 of 3 images .*not on the public web"):
        list(read(folder, "test", allow_urls=True))
    assert server.asked == []


@READ
@pytest.mark.parametrize("form", ["{}", "file://{}", "local://{}", "zip://secret.png::{}", "{}/../secret.png", "../x"])
def test_a_downloaded_set_reads_no_other_file_of_this_machine(png, write, tmp_path, monkeypatch, read, form):
    (tmp_path / "secret.png").write_bytes(png)
    (tmp_path / "x").write_bytes(png)
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path / "set")
    where = tmp_path / "set" if ".." in form else tmp_path / "secret.png"
    folder = write({"image": [form.format(where)], "caption": ["a dog"]})
    with pytest.raises(ValueError, match="not a file of this dataset"):
        list(read(folder, "test"))


@READ
def test_ones_own_table_may_name_any_file_and_that_of_a_folder_only_its_own(png, tmp_path, read):
    (tmp_path / "secret.png").write_bytes(png)
    (tmp_path / "set").mkdir()
    table = tmp_path / "set" / "captions.csv"
    for path in (tmp_path / "secret.png", "../secret.png"):
        table.write_text(f"image,caption,split\n{path},a dog,test\n")
        (row,) = read(table, "test")
        assert row["image"].size == (40, 30)
        with pytest.raises(FileNotFoundError, match="None of the 1 images exists"):
            list(read(tmp_path / "set", "test"))


def test_of_a_path_that_leads_out_the_last_part_is_looked_for(tmp_path):
    (tmp_path / "0.png").touch()
    ((found,), _) = locate_images([ImageEntry("/home/author/0.png", ("a dog",), None, "0")], tmp_path, outside=False)
    assert found.path == str(tmp_path / "0.png")


@READ
@pytest.mark.parametrize("column", ["thumbnail", "captions", "image_id", "image"])
def test_no_other_column_is_opened(server, png, write, read, column):
    """An image in an unused column, in a list of captions, in an id, in a list of images."""
    inside = {"path": f"{server.address}/0.png", "bytes": None}
    columns = {"image": [{"path": "0.png", "bytes": png}], "captions": [["a dog"]]}
    features = {"image": Image(), "captions": List(Value("string"))}
    is_list = column in ("captions", "image")
    folder = write(
        {**columns, column: [[inside] if is_list else inside]},
        {**features, column: List(Image()) if is_list else Image()},
    )
    if column == "thumbnail":
        assert len(list(read(folder, "test"))) == 1
    else:
        with pytest.raises(ValueError, match=f"in its column '{column}'"):
            list(read(folder, "test"))
    assert server.asked == []


@READ
@pytest.mark.parametrize("file", ["{}/x.parquet", "/home/someone/x.parquet", "../x.parquet", "~/x.parquet"])
@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_a_card_that_names_other_files_is_refused(server, png, write, read, file, card):
    folder = write(
        {"image": [{"path": "0.png", "bytes": png}], "caption": ["a"]}, {"image": Image(), "caption": Value("string")}
    )
    named = file.format(server.address)
    fields = f"configs:\n- config_name: default\n  data_files:\n  - split: test\n    path: '{named}'\n"
    (folder / card).write_text(f"---\n{fields}---\n" if card == "README.md" else fields)
    with pytest.raises(ValueError, match=r"is refused: its .* places its rows in "):
        list(read(folder, "test"))
    assert server.asked == []


@READ
def test_a_card_that_names_its_own_files_is_followed(png, write, read):
    folder = write(
        {"image": [{"path": "0.png", "bytes": png}], "caption": ["a"]}, {"image": Image(), "caption": Value("string")}
    )
    fields = "configs:\n- config_name: default\n  data_files:\n  - split: mine\n    path: test.parquet\n"
    (folder / "README.md").write_text(f"---\n{fields}---\n")
    assert len(list(read(folder, "mine"))) == 1


def test_a_saved_set_of_other_files_is_refused(make_dataset, tmp_path):
    make_dataset(2).save_to_disk(tmp_path / "saved")
    state = json.loads((tmp_path / "saved" / "state.json").read_text())
    state["_data_files"][0]["filename"] = "../other/data-00000-of-00001.arrow"
    (tmp_path / "saved" / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"is refused: its state\.json places its rows in '\.\./other/data"):
        load_captions(tmp_path / "saved")


@pytest.mark.parametrize(
    ("path", "is_of_the_set"),
    [
        ("hf://datasets/me/set@main/0.png", True),
        ("zip://0.png::hf://datasets/me/set@main/photos.zip", True),
        ("hf://datasets/me/set2@main/0.png", False),
        ("hf://datasets/someone/else@main/0.png", False),
        ("file:///etc/passwd::hf://datasets/me/set@main/0.png", False),
        ("zip://0.png::http://127.0.0.1/photos.zip", False),
        ("simplecache::http://127.0.0.1/0.png", False),
        ("s3://bucket/0.png", False),
        ("github://me:set@main/0.png", False),
    ],
)
def test_a_set_of_the_hub_reads_its_own_repository(path, is_of_the_set):
    assert origin_of_hub("me/set", allow_urls=True)._is_in_data_set(path) is is_of_the_set
    assert not Origin()._is_in_data_set(path)


def test_a_set_of_the_hub_reads_what_was_downloaded_of_it(monkeypatch, tmp_path, png):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    origin = origin_of_hub("me/set", allow_urls=False)
    for repository in ("datasets--me--set", "datasets--me--other"):
        (tmp_path / repository).mkdir()
        (tmp_path / repository / "0.png").write_bytes(png)
    assert origin.read(str(tmp_path / "datasets--me--set" / "0.png")) == (png, None)
    content, problem = origin.read(str(tmp_path / "datasets--me--other" / "0.png"))
    assert content == b""
    assert "not a file of this dataset" in problem


def test_a_photo_that_is_no_bomb_is_what_is_fetched(server, online, write, monkeypatch):
    monkeypatch.setattr(untrusted_images, "LIMITS", untrusted_images.Limits(image_bytes=100))
    monkeypatch.setattr(untrusted_images.fetch_image, "__defaults__", (untrusted_images.Limits(image_bytes=100), None))
    folder = write({"image": ["http://127.0.0.1/0.png"], "caption": ["a dog"]})
    with pytest.raises(ValueError, match="This file is larger than 0 MB"):
        load_captions(folder, "test", allow_urls=True)
    assert PILImage.MAX_IMAGE_PIXELS  # the guard of Pillow is as it was


@READ
def test_a_caption_that_is_no_sentence_is_left_out(png, write, read):
    images = [{"path": "0.png", "bytes": png}] * 2
    folder = write(
        {"image": images, "caption": ["a dog", "word " * 200_000]}, {"image": Image(), "caption": Value("string")}
    )
    with pytest.warns(UserWarning, match="a caption has 999,999 characters, more than 10,000"):
        assert [row["captions"] for row in read(folder, "test", max_skipped=0.5)] == [["a dog"]]
