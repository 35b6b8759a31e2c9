import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hf_gru_captioner.untrusted_images import Limits, RefusedError
from hf_gru_captioner.web.uploads import Uploads, is_loopback, uploads, visitor_of

FEW = Limits(file_bytes=1000, visitor_files=3, visitor_bytes=100, uploads_bytes=150)


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "uploads"
    (folder / "hash").mkdir(parents=True)
    (folder / "hash" / "own.jpg").write_bytes(b"photo")
    return Uploads(folder, FEW)


def test_a_file_of_the_folder_is_found_and_nothing_else(store, tmp_path):
    own = store.folder / "hash" / "own.jpg"
    assert store.check(str(own)) == own
    assert store.check(f"{store.folder}/./hash/../hash/own.jpg") == own
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(b"photo")
    (store.folder / "link.jpg").symlink_to(outside)
    (store.folder / "linked").symlink_to(tmp_path)
    (store.folder / "circle").symlink_to(store.folder / "circle")
    os.mkfifo(store.folder / "pipe.jpg")
    (store.folder / "large.jpg").write_bytes(bytes(1001))
    beside = tmp_path / "uploads2"
    beside.mkdir()
    (beside / "a.jpg").write_bytes(b"photo")
    said = set()
    for path in (
        outside, f"{own}/../../../outside.jpg", store.folder / "link.jpg", store.folder / "linked" / "outside.jpg",
        store.folder / "circle", store.folder / "pipe.jpg", store.folder / "large.jpg", store.folder,
        store.folder / "hash", store.folder / "none.jpg", beside / "a.jpg", "/dev/zero", "/proc/self/environ", "",
        "\0", f"{own}\0", "a" * 100_000, "http://127.0.0.1/a.jpg", f"file://{own}", "None",
    ):  # fmt: skip
        with pytest.raises(RefusedError) as refused:
            store.check(str(path))
        said.add(str(refused.value))
    assert said == {"This photo is not here; photos are deleted after 10 minutes. Please send it again."}


def test_of_a_path_outside_the_disk_is_asked_nothing(store, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "lstat", lambda path, **_: asked.append(path))
    monkeypatch.setattr(os, "stat", lambda path, **_: asked.append(path))
    with pytest.raises(RefusedError):
        store.check("/etc/passwd")
    assert not asked


def test_paths_are_found_however_deep_they_are(store):
    own = {"path": str(store.folder / "hash" / "own.jpg"), "meta": {"_type": "gradio.FileData"}}
    store.check_all(["text", 7, None, own, [own, {"data": [[own]]}], {"headers": ["path"]}])
    for hostile in (
        {"path": "/etc/passwd"}, [[[{"path": "/etc/passwd"}]]], {"a": {"b": [{"path": None}]}},
        {"path": ["/etc/passwd"]}, {"meta": {}, "url": "x"}, {"path": {"path": "/etc/passwd"}},
        {**own, "thumbnail": {"path": "/dev/zero"}},
    ):  # fmt: skip
        with pytest.raises(RefusedError):
            store.check_all([own, hostile])
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    store.check_all(deep)


def test_what_one_visitor_and_all_together_send_is_bounded(store):
    sent = store.begin("a")
    store.count("a", sent, 60, 1)
    with pytest.raises(RefusedError, match="More than 0 MB were sent from here in 10 minutes"):
        store.count("a", store.begin("a"), 41, 1)
    store.count("b", store.begin("b"), 40, 1)
    with pytest.raises(RefusedError, match="Too many people"):
        store.count("c", store.begin("c"), 10, 1)


def test_the_number_of_files_is_bounded_and_the_next_request_refused_at_once(store):
    with pytest.raises(RefusedError, match="More than 3 files"):
        store.count("a", store.begin("a"), 0, 4)
    with pytest.raises(RefusedError, match="More than 3 files"):
        store.begin("a")
    store.begin("b")


@pytest.mark.parametrize("own", ["127.0.0.1", "::1"])
def test_visitors_on_this_machine_may_send_more_if_the_page_says_so(store, own):
    own = visitor_of({"client": (own, 1), "headers": []})
    behind_proxy = visitor_of({"client": ("127.0.0.1", 1), "headers": [(b"x-forwarded-for", b"8.8.8.8")]})
    with pytest.raises(RefusedError, match="More than 3 files"):
        store.count(own, store.begin(own), 0, 4)
    store.reset_counts()
    store.local_limits = replace(FEW, visitor_files=50, visitor_bytes=2_500_000_000, uploads_bytes=2_500_000_000)
    store.count(own, store.begin(own), 1_000_000, 40)
    with pytest.raises(RefusedError, match=r"More than 2\.5 GB were sent from here in 10 minutes"):
        store.count(own, store.begin(own), 2_500_000_000, 1)
    store.reset_counts()
    with pytest.raises(RefusedError, match="More than 3 files"):
        store.count(behind_proxy, store.begin(behind_proxy), 0, 4)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("localhost", True), ("127.0.0.1", True), ("127.9.0.1", True), ("::1", True), ("[::1]", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", "")],
)
def test_an_address_is_of_this_machine_alone_or_not(host, expected):
    assert is_loopback(host) == expected


def test_after_ten_minutes_files_are_gone_and_room_is_there_again(store):
    store.keep_present()
    store.limits = replace(FEW, kept_seconds=0.2)
    sent = store.begin("a")
    store.count("a", sent, 100, 3)
    sent.is_complete = True
    (store.folder / "other").mkdir()
    (store.folder / "other" / "photo.jpg").write_bytes(b"photo")
    (store.folder / "half").write_bytes(b"half an upload")
    store.sweep()
    assert (store.folder / "other" / "photo.jpg").exists()
    time.sleep(0.3)
    store.sweep()
    assert [path.name for path in store.folder.rglob("*") if path.is_file()] == ["own.jpg"]  # the page's own
    assert not (store.folder / "other").exists()
    store.begin("a")


def test_refused_requests_leave_nothing_behind(store):
    store.limits = replace(FEW, kept_seconds=0.1)
    sent = store.begin("a")
    with pytest.raises(RefusedError):
        store.count("a", sent, 0, 4)
    for _ in range(3):
        with pytest.raises(RefusedError):
            store.begin("a")
    sent.is_complete = True
    time.sleep(0.2)
    store.begin("b").is_complete = True
    assert store.visitors == {"b"}


def test_what_still_comes_is_not_forgotten(store):
    store.limits = replace(FEW, kept_seconds=0.1)
    sent = store.begin("a")
    store.count("a", sent, 90, 1)
    time.sleep(0.2)
    with pytest.raises(RefusedError):
        store.count("a", store.begin("a"), 20, 1)


@pytest.mark.parametrize(
    ("client", "forwarded", "visitor"),
    [
        ("93.184.216.34", None, "93.184.216.34"),
        ("93.184.216.34", b"1.1.1.1", "93.184.216.34"),  # a stranger may say anything
        ("10.0.0.1", b"8.8.8.8", "8.8.8.8"),
        ("10.0.0.1", b"1.1.1.1, 8.8.8.8", "8.8.8.8"),  # the last is what a proxy saw
        ("127.0.0.1", b"8.8.8.8, 10.0.0.7", "8.8.8.8"),
        ("127.0.0.1", b"nonsense, ", "127.0.0.1"),
        ("127.0.0.1", None, "127.0.0.1"),
        ("::1", None, "::1"),
        ("2606:4700::1", None, "2606:4700::/64"),
        ("2606:4700::2", None, "2606:4700::/64"),
        ("testclient", None, "testclient"),
    ],
)
def test_visitors_are_told_apart(client, forwarded, visitor):
    headers = [] if forwarded is None else [(b"x-forwarded-for", forwarded)]
    assert visitor_of({"client": (client, 1), "headers": headers}) == visitor


def test_the_folder_is_this_process_s_own_and_dies_with_it(tmp_path):
    code = "from hf_gru_captioner.web.uploads import uploads; import os; print(uploads().folder); {end}"
    settings = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path)}

    def run(end):
        done = subprocess.run(
            [sys.executable, "-c", code.format(end=end)], env=settings, capture_output=True, text=True
        )
        return Path(done.stdout.strip())

    first = run("")
    assert first.parent == tmp_path
    assert not first.exists()
    killed = run("import sys; sys.stdout.flush(); os.kill(os.getpid(), 9)")
    assert killed.exists()
    assert killed.stat().st_mode & 0o077 == 0
    run("")
    assert not killed.exists()
    assert uploads() is uploads()
    assert uploads().folder.exists()
