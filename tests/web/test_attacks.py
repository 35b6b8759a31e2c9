"""Attacks on a running page: raw HTTP requests that no browser would send."""

import base64
import contextlib
import http.client
import io
import json
import os
import socket
import struct
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from hf_gru_captioner import Caption
from hf_gru_captioner.hub import demo_folder
from hf_gru_captioner.model import load_image
from hf_gru_captioner.web import Captioned, ServicePool, build_page, launch

HOSTILE = json.loads((Path(__file__).parents[1] / "support" / "hostile_texts.json").read_text())
EXAMPLES = demo_folder() / "examples"
KITTEN = EXAMPLES / "kitten.jpg"
SETTINGS = ["shipped", "greedy", 1, 1, 1, 1, 0.9, 5, 0]
OF_CALL = [*SETTINGS[1:], "shipped", False]  # what /caption takes after the photo
OF_MANY = OF_CALL[:-1]
SIGN = {"_type": "gradio.FileData"}

pytestmark = pytest.mark.slow


def ask(url, data=None, headers=(), timeout=30) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data, dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def post(url, content) -> tuple[int, bytes]:
    return ask(url, json.dumps(content).encode(), {"Content-Type": "application/json"})


def upload(address, *files) -> list[str]:
    """Paths of files on the server, each given by name and content."""
    status, body = ask(*upload_request(address, files))
    assert status == 200, body
    return json.loads(body)


def upload_request(address, files):
    body = b""
    for name, content in files:
        body += (
            f'--cut\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
            + content
            + b"\r\n"
        )
    return f"{address}gradio_api/upload", body + b"--cut--\r\n", {"Content-Type": "multipart/form-data; boundary=cut"}


def join(address, number: int, data) -> str:
    """The response to the page's own protocol, which calls functions by number."""
    session = os.urandom(8).hex()
    status, body = post(f"{address}gradio_api/queue/join", {"data": data, "fn_index": number, "session_hash": session})
    if status != 200:
        return body.decode()
    with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash={session}", timeout=30) as lines:
        for line in lines:
            if b"process_completed" in line or b"unexpected_error" in line:
                return without_times(json.loads(line[5:]))
    raise AssertionError("no answer")


def call(address, name: str, data) -> str:
    status, body = post(f"{address}gradio_api/call/{name}", {"data": data})
    if status != 200:
        return body.decode()
    return ask(f"{address}gradio_api/call/{name}/{json.loads(body)['event_id']}")[1].decode()


def without_times(answer) -> str:
    output = answer.get("output", answer)
    return json.dumps({name: value for name, value in output.items() if "duration" not in name and name != "title"})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Every kind of path that a visitor must not read, by kind."""
    folder = tmp_path_factory.mktemp("server")
    Image.open(KITTEN).save(folder / "private.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to(folder / "private.png")
    (folder / "large.png").write_bytes(KITTEN.read_bytes() + bytes(25_000_000))
    return {
        "nothing": str(folder / "nothing.png"),
        "picture": str(folder / "private.png"),
        "text": "/etc/passwd",
        "endless": "/dev/zero",
        "pipe": str(folder / "pipe.png"),
        "link": str(folder / "link.png"),
        "folder": str(folder),
        "large": str(folder / "large.png"),
        "relative": os.path.relpath(folder / "private.png"),
        "other user's memory": "/proc/self/environ",
    }


@pytest.fixture
def traversals(files, address):
    """The same paths by traversal from the upload folder."""
    (own,) = upload(address, ("own.jpg", KITTEN.read_bytes()))
    root = Path(own).parents[1]
    within = root / "link.jpg"
    within.symlink_to(files["picture"])  # as no visitor could make it
    os.mkfifo(root / "pipe.jpg")
    yield {
        "up": f"{root}/../../../..{files['picture']}",
        "up from a file": f"{own}/../../../../..{files['picture']}",
        "link among uploads": str(within),
        "pipe among uploads": str(root / "pipe.jpg"),
        "folder of uploads": str(root),
        "folder of one": str(Path(own).parent),
        "none among uploads": str(Path(own).with_name("none.jpg")),
        "null": f"{own}\0.jpg",
        "empty": "",
        "address": "http://127.0.0.1:9/a.png",
        "file address": f"file://{files['picture']}",
        "quoted": urllib.parse.quote(files["picture"], safe=""),
    }
    within.unlink()
    (root / "pipe.jpg").unlink()


def functions(address) -> list[dict]:
    """Functions listed by the page, including Gradio's own."""
    config = json.loads(ask(f"{address}config")[1])
    kinds = {component["id"]: component for component in config["components"]}
    return [{**each, "kinds": [kinds[number]["type"] for number in each["inputs"]]} for each in config["dependencies"]]


def test_no_endpoint_of_the_page_reads_any_path_or_tells_what_is_there(address, files, traversals):
    """Every function, input and path; given as a picture, as an upload, or within a list."""
    asked = 0
    for function in functions(address):
        inputs = len(function["inputs"])
        if not inputs:
            continue  # it runs in the browser alone
        answers: dict[str, set[str]] = {}
        for kind, path in {**files, **traversals}.items():
            named = {"path": path}, {"path": path, "meta": SIGN}, [{"path": path, "meta": SIGN, "orig_name": "a.jpg"}]
            for file in (*named, {"data": [[{"path": path, "meta": SIGN}]], "headers": ["file_name", "caption"]}):
                data = [None] * inputs
                data[0] = file
                data[-len(SETTINGS) :] = SETTINGS if inputs > len(SETTINGS) else data[-len(SETTINGS) :]
                answers.setdefault(join(address, function["id"], data), set()).add(kind)
                asked += 1
        assert len(answers) == 1, (function["api_name"], answers)
        (said,) = answers
        assert "is not here" in said or "does not accept" in said
    assert asked > 200
    assert all(
        call(address, "caption", [{"path": path}, *OF_CALL]).startswith("event: error") for path in files.values()
    )


def test_one_s_own_upload_and_the_examples_are_read(address):
    (own,) = upload(address, ("../../a b.jpg", KITTEN.read_bytes()))
    assert "kitten" not in own
    answer = call(address, "caption", [{"path": own, "meta": SIGN}, *OF_CALL])
    assert "log_probabilities" in answer
    example = next(
        component["props"]["value"][0]["image"]["path"]
        for component in json.loads(ask(f"{address}config")[1])["components"]
        if component["type"] == "gallery"
    )
    assert "log_probabilities" in call(address, "caption", [{"path": example, "meta": SIGN}, *OF_CALL])


def test_uploads_have_names_that_nobody_can_guess(address, tmp_path):
    content = KITTEN.read_bytes()
    (own,) = upload(address, ("photo.jpg", content))
    import hashlib

    plain = {hashlib.new(kind, content).hexdigest() for kind in ("md5", "sha1", "sha256")}
    assert len(Path(own).parent.name) == 64
    assert Path(own).parent.name not in plain


def test_files_that_are_served_are_the_page_s_own(address, files, traversals):
    (own,) = upload(address, ("own.jpg", KITTEN.read_bytes()))
    assert ask(f"{address}gradio_api/file={own}") == (200, KITTEN.read_bytes())
    answers = {
        ask(f"{address}gradio_api/file{sign}{urllib.parse.quote(path)}")
        for path in (*files.values(), *traversals.values(), "https://example.org/a.png", "//example.org/a.png")
        for sign in "=/"
    }
    assert answers == {(404, b"Not found.")}


@pytest.mark.parametrize(
    "path",
    [
        "openapi.json",
        "docs",
        "redoc",
        "gradio_api/openapi.json",
        "runs",
        "monitoring",
        "monitoring/summary",
        "login",
        "gradio_api/token",
        "gradio_api/proxy=http://127.0.0.1:9/",
        "gradio_api/proxy=https://x.hf.space/",
        "gradio_api/vibe-code/",
        "gradio_api/run-history/buckets",
        "gradio_api/deep_link",
        "gradio_api/custom_component/1/client/a/b.js",
        "gradio_api/component_server",
        "gradio_api/process_recording",
        "gradio_api/dev/reload",
        "gradio_api/stream/1/2/3/playlist.m3u8",
        "assets/../../../../etc/passwd",
        "static/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "gradio_api/../etc/passwd",
    ],
)
def test_what_the_page_does_not_need_is_not_there(address, path):
    for body in (None, b"{}"):
        status, answer = ask(f"{address}{path}", body, {"Content-Type": "application/json"})
        assert status in (403, 404, 405)
        assert b"root:" not in answer


def test_a_call_that_passes_by_the_queue_is_refused(address):
    photo = base64.b64encode(KITTEN.read_bytes()).decode()
    data = [photo, "greedy", 1, 1, 1, 1, 0.9, 5, 0, "shipped", False]
    for way in ("run", "api"):
        assert post(f"{address}gradio_api/{way}/caption", {"data": data})[0] == 404


def test_every_answer_has_security_headers(address):
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=20)
    for path in ("/", "/config", "/openapi.json", "/gradio_api/info", "/gradio_api/file=/etc/passwd", "/theme.css"):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        policy = dict(each.split(" ", 1) for each in headers["content-security-policy"].split("; "))
        assert policy["frame-ancestors"] == "'self' https://huggingface.co https://*.hf.space"
        assert policy["object-src"] == "'none'"
        assert "http" not in policy["default-src"] + policy["img-src"] + policy["connect-src"] + policy["script-src"]


def test_what_the_page_says_of_itself_names_no_folder_but_that_of_its_uploads(address):
    from hf_gru_captioner.web.uploads import uploads

    for path in ("config", "", "gradio_api/info"):
        text = ask(f"{address}{path}")[1].decode().replace(str(uploads().folder), "")
        for folder in (Path.cwd(), Path.home(), EXAMPLES, Path(__file__).parents[2]):
            assert f"{folder}/" not in text


def test_an_oversize_body_in_chunks_is_refused_as_one(address):
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=20)
    chunk = b'{"data": ["' + b"a" * 1_000_000
    connection.putrequest("POST", "/gradio_api/call/caption")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    for _ in range(60):
        try:
            connection.send(b"%x\r\n" % len(chunk) + chunk + b"\r\n")
        except OSError:
            break
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (413, b"This request is too large.")


@pytest.fixture
def impatient(monkeypatch):
    """A page that waits only half a second for clients."""
    from hf_gru_captioner.web import body_limit, page, routes

    with_timeouts = routes.with_timeouts
    monkeypatch.setattr(page, "with_timeouts", lambda protocol: with_timeouts(protocol, 0.5))
    monkeypatch.setattr(body_limit.BodyLimit.__init__, "__defaults__", (None, 0.5))
    blocks = build_page(ServicePool(["none"], lambda name: None), load_image)
    launch(blocks, server_name="127.0.0.1")
    yield blocks.local_url
    blocks.close()


@pytest.mark.parametrize(
    ("begin", "said"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX", b""),
        (b"POST /gradio_api/call/caption HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{", b"408"),
        ((b"POST /gradio_api/upload HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
         b"Content-Length: 1000\r\n\r\n--x\r\n"), b"408"),
    ],
)  # fmt: skip
def test_a_client_that_drips_is_cut_off(impatient, begin, said):
    where = urllib.parse.urlsplit(impatient)
    with socket.create_connection((where.hostname, where.port), timeout=10) as client:
        client.sendall(begin)
        got = b""
        for _ in range(50):
            try:
                client.sendall(b"x" if begin else b"")
                client.settimeout(0.2)
                more = client.recv(4096)
                if not more:
                    break
                got += more
            except TimeoutError:
                continue
            except OSError:
                break
        else:
            pytest.fail("the server still waits")
    assert said in got
    assert ask(impatient)[0] == 200


def test_a_client_that_reads_no_answer_is_cut_off(impatient):
    where = urllib.parse.urlsplit(impatient)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((where.hostname, where.port))
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 200)
        time.sleep(4)
        client.settimeout(10)
        got = 0
        with contextlib.suppress(ConnectionError):
            while more := client.recv(1 << 16):
                got += len(more)
    assert got < 100 * len(ask(impatient)[1])


def narrow_png(side: int) -> bytes:
    """A picture with one bit per pixel, a few kilobytes in size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + bytes(-(-side // 8))
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    content = zlib.compress(row * side, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


SERVE = """
import os, sys, threading
from hf_gru_captioner import Captioner
from hf_gru_captioner.model import load_image
from hf_gru_captioner.web import ServicePool, build_page, launch
page = build_page(ServicePool(["shipped"], lambda name: Captioner.from_pretrained()), load_image)
launch(page, server_name="127.0.0.1")
print(page.local_url, flush=True)
sys.stdin.read()
"""


def highest(process) -> int:
    """Peak memory of a process in megabytes."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def test_64_callers_with_pictures_of_many_pixels_need_less_than_a_gigabyte():
    import subprocess
    import sys

    process = subprocess.Popen([sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().strip()
        bomb = base64.b64encode(narrow_png(7000)).decode()
        small = base64.b64encode(KITTEN.read_bytes()).decode()
        data = ["greedy", 1, 1, 1, 1, 0.9, 5, 0, "shipped", False]
        assert "log_probabilities" in call(address, "caption", [small, *data])
        before = highest(process)
        assert len(bomb) < 12_000
        (path,) = upload(address, ("bomb.png", base64.b64decode(bomb)))

        def one(number):
            if number % 2:
                return call(address, "caption", [bomb, *data])
            return call(address, "caption", [{"path": path}, *OF_CALL])

        with ThreadPoolExecutor(64) as callers:
            answers = list(callers.map(one, range(64)))
        refused = [answer for answer in answers if "log_probabilities" not in answer]
        assert all("Queue is full" in answer or "Too many people" in answer for answer in refused)
        assert len(refused) < 64
        added = highest(process) - before
        assert added < 1000
        assert "log_probabilities" in call(address, "caption", [small, *data])
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def hostile_page():
    """A page whose model writes a given text, with a checkpoint whose name and errors are hostile too."""

    def words(text):
        return Caption(text, -1.0, (text,), (-1.0,), None, (((text, 0.5), (text, 0.2)),))

    class Service:
        number = 0

        def load(self, content):
            return load_image(content, size=(32, 32))

        def __call__(self, photo, decoding=None):
            Service.number += 1
            text = HOSTILE[Service.number % len(HOSTILE)]
            return Captioned([words(text), words(text + "2")][: decoding.captions_written], 1.0, 1.0, 1)

    def fail(name):
        raise ValueError(HOSTILE[0] + HOSTILE[1] + name)

    class Pool(ServicePool):
        def __getitem__(self, name):
            return Service() if name == HOSTILE[1] else super().__getitem__(name)

    pool = Pool([HOSTILE[1], HOSTILE[0]], fail, any_name=True, capacity=100)
    page = build_page(pool, load_image)
    launch(page, server_name="127.0.0.1")
    yield page.local_url
    page.close()


def archive_of(color: str, number: int = 20) -> bytes:
    photo, archive = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (40, 30), color).save(photo, "PNG")
    with zipfile.ZipFile(archive, "w") as file:
        for each in range(number):
            file.writestr(f"{color}{each}.png", photo.getvalue())
    return archive.getvalue()


@pytest.fixture
def page_of_colors():
    """A page that captions a photo with its color, once the event that comes with it is set; and the colors that it has
    seen."""
    go_on, seen = threading.Event(), set()

    class Service:
        def load(self, content):
            return load_image(content, size=(32, 32))

        def __call__(self, photo, decoding=None):
            red, _, _ = photo.getpixel((16, 16))
            text = "red" if red else "blue"
            seen.add(text)
            go_on.wait(60)
            return Captioned([Caption(text, -1.0, (text,), (-1.0,), None)], 1.0, 1.0, 1)

    class Pool(ServicePool):
        def __getitem__(self, name):
            return Service()

    page = build_page(Pool(["shipped"], lambda name: None), load_image)
    launch(page, server_name="127.0.0.1")
    yield page, go_on, seen
    go_on.set()
    page.close()


def wait_until(condition, seconds=20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_visitors_with_many_photos_at_the_same_time_get_their_own(page_of_colors):
    page, go_on, seen = page_of_colors
    address = page.local_url

    def table_of(color):
        (path,) = upload(address, (f"{color}.zip", archive_of(color)))
        answer = call(address, "caption_many", [[{"path": path, "meta": SIGN}], *OF_MANY])
        assert "event: complete" in answer, answer
        return [[row["file_name"], row["caption"]] for row in json.loads(answer.rpartition("data: ")[2])[0]]

    with ThreadPoolExecutor(2) as visitors:
        tables = {color: visitors.submit(table_of, color) for color in ("red", "blue")}
        wait_until(lambda: seen == {"red", "blue"})
        go_on.set()
        for color, table in tables.items():
            assert table.result() == [[f"{color}{number}.png", color] for number in range(20)]


def test_no_list_of_all_files_that_ever_came_or_went_is_kept(page_of_colors):
    page, go_on, _ = page_of_colors
    go_on.set()
    (path,) = upload(page.local_url, ("red.zip", archive_of("red", 2)))
    data = [[{"path": path, "meta": SIGN}], *OF_MANY]
    assert "event: complete" in call(page.local_url, "caption_many", data)
    call(page.local_url, "caption", ["no photo", "greedy", 1, 1, 1, 1, 0.9, 5, 0, "shipped", False])
    assert page.temp_file_sets
    assert not any(page.temp_file_sets)


def test_of_many_photos_that_a_client_left_nothing_goes_on(page_of_colors, capfd):
    page, go_on, seen = page_of_colors
    address = page.local_url
    (path,) = upload(address, ("red.zip", archive_of("red", 100)))
    data = [[{"path": path, "meta": SIGN}], *OF_MANY]
    event = json.loads(post(f"{address}gradio_api/call/caption_many", {"data": data})[1])["event_id"]
    with socket.create_connection(urllib.parse.urlsplit(address).netloc.split(":"), timeout=5) as client:
        client.sendall(f"GET /gradio_api/call/caption_many/{event} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        wait_until(lambda: seen == {"red"})
        time.sleep(0.5)
    go_on.set()
    wait_until(lambda: not any(thread.name.startswith("many") for thread in threading.enumerate()))
    text = base64.b64encode(KITTEN.read_bytes()).decode()
    assert "event: complete" in call(address, "caption", [text, "greedy", 1, 1, 1, 1, 0.9, 5, 0, "shipped", False])
    assert "Traceback" not in capfd.readouterr().err


@pytest.fixture
def watched(browser, hostile_page):
    """The hostile page in a browser; records its requests to other servers and any code it runs."""
    context = browser.new_context()
    page = context.new_page()
    page.taken = []
    page.on(
        "request",
        lambda asked: None if asked.url.startswith((hostile_page, "data:", "blob:")) else page.taken.append(asked.url),
    )
    page.on("dialog", lambda dialog: (page.taken.append("dialog"), dialog.dismiss()))
    page.on("console", lambda said: page.taken.append(said.text) if "Content Security Policy" in said.text else None)
    page.goto(hostile_page)
    page.wait_for_selector("#photo input[type=file]", state="attached")
    yield page
    assert page.title() == "GRU captioner"
    assert not page.taken
    context.close()


def foreign_elements(page) -> int:
    """Elements that only a hostile text could have created."""
    return page.evaluate(
        """() => [...document.querySelectorAll('*')].flatMap(each =>
            [each, ...(each.shadowRoot?.querySelectorAll('*') ?? [])]).filter(each =>
                (each.tagName === 'B' && /bold|mine/.test(each.textContent)) ||
                [...each.attributes].some(({name, value}) =>
                    (/^on/.test(name) && /title/.test(value)) ||
                    (/^(src|href|srcdoc)$/.test(name) &&
                        /127\\.0\\.0\\.2|javascript:|^x$|title/.test(value)))).length"""
    )


def test_what_looks_for_foreign_elements_finds_them(watched):
    watched.evaluate("""() => {
        for (const text of ['<b>bold</b>', '<a href="javascript:1">x</a>', '<p onclick="document.title">'])
            document.body.insertAdjacentHTML('beforeend', text);
    }""")
    assert foreign_elements(watched) == 3


def test_hostile_names_and_captions_of_many_photos_stay_text(watched, tmp_path):
    photo = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(photo, "PNG")
    archive = tmp_path / "more.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for number, text in enumerate(HOSTILE):
            name = text.replace("/", "\u2215")  # else only what follows it is the name
            file.writestr(f"{name}{number}.png", photo.getvalue())
    watched.get_by_role("tab", name="Many photos").click()
    watched.set_input_files("#review [data-part=files]", [archive])
    watched.get_by_text(f"0 of {len(HOSTILE)} accepted").wait_for()
    for button in ("corrections", "csv"):
        watched.click("#review [data-part=accept] >> nth=0")
        with watched.expect_download():
            watched.click(f"#review [data-save={button}]")
    assert foreign_elements(watched) == 0


def test_hostile_names_of_files_that_are_left_out_stay_text(watched, tmp_path):
    watched.get_by_role("tab", name="Many photos").click()
    left = watched.locator("#review [data-part=left-list] li")
    for start in range(0, len(HOSTILE), 5):  # more for the same reason are only counted
        names = [f"{text.replace('/', chr(0x2215))}{number}.png" for number, text in enumerate(HOSTILE)][
            start : start + 5
        ]
        archive = tmp_path / f"{start}.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for name in names:
                file.writestr(name, b"not a picture")
        watched.set_input_files("#review [data-part=files]", [archive])
        watched.get_by_text("No photo was captioned").wait_for()
        watched.click("#review summary")
        assert left.count() == len(names)
        assert left.all_text_contents()[0].endswith(".png: This is not a picture, or it is damaged.")
        assert foreign_elements(watched) == 0
        watched.click("#review [data-part=more]")


def test_hostile_captions_and_alternatives_of_one_photo_stay_text(watched):
    for number in range(len(HOSTILE)):
        watched.set_input_files("#photo input[type=file]", KITTEN if number % 2 else EXAMPLES / "dogs_lawn.jpg")
        watched.wait_for_selector("#viewer [data-word]")
        alternatives = watched.locator("#viewer .alternatives li, #viewer .alternatives li")
        for _ in range(50):  # the caption of the photo before may be replaced, and what was chosen of it with it
            watched.click('#viewer [data-word="0"]')
            if alternatives.count() == 2:
                break
            watched.wait_for_timeout(200)
        assert alternatives.count() == 2
        assert foreign_elements(watched) == 0
        watched.click("#viewer [data-part=another]")


def test_hostile_errors_stay_text_and_are_sentences_for_programs_too(watched, hostile_page):
    data = ["greedy", 1, 1, 1, 1, 0.9, 5, 0]
    said = call(hostile_page, "caption", [base64.b64encode(KITTEN.read_bytes()).decode(), *data, "<b>'x'", False])
    assert "<img" not in said
    assert "&lt;img" in said
    assert "&lt;b&gt;'x'" in said
    watched.get_by_text("Settings").first.click()
    watched.get_by_label("Checkpoint").first.fill("<b>mine</b>")
    watched.keyboard.press("Enter")
    watched.set_input_files("#photo input[type=file]", KITTEN)
    watched.get_by_text("<b>mine</b>").first.wait_for()
    assert foreign_elements(watched) == 0


def number_of(address, name) -> int:
    return next(each["id"] for each in functions(address) if each["api_name"] == name)


def test_formulas_in_a_review_are_saved_harmless(address):
    rows = [
        ["=cmd|' /C calc'!A0", "+1"],
        ["@SUM(1)", "\t=1"],
        ["-2", "\r=3"],
        [" =1", "a dog"],
        *([t, t] for t in HOSTILE),
    ]
    sent = {"save": "csv", "rows": [{"name": name, "caption": text} for name, text in rows]}
    answer = json.loads(join(address, number_of(address, "save_review"), [json.dumps(sent)]))
    import csv

    with open(answer["data"][0]["path"], newline="", encoding="utf-8-sig") as file:
        cells = [cell for row in list(csv.reader(file))[1:] for cell in row]
    assert len(cells) == 2 * len(rows)
    assert not [cell for cell in cells if cell.strip().startswith(("=", "+", "-", "@"))]


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "[",
        "[]",
        "7",
        None,
        7,
        {"photos": 1},
        '{"photos": 1}',
        '{"photos": [1]}',
        '{"photos": [{"name": 1, "path": 2}]}',
        '{"rows": [{}], "save": "csv"}',
        '{"rows": [], "save": 1}',
        '{"rows": [{"name": "a", "caption": "b"}], "save": "exe"}',
        "[" * 100_000,
    ],
)
def test_what_no_review_grid_sends_is_refused_in_a_sentence(address, sent):
    for name, data in (("caption_for_review", [sent, *SETTINGS]), ("save_review", [sent])):
        said = join(address, number_of(address, name), data)
        assert any(words in said for words in ("malformed", "Captions can be saved as")), said


def test_a_review_grid_captions_uploads_only(address, files, traversals):
    number = number_of(address, "caption_for_review")
    for path in (*files.values(), *traversals.values()):
        sent = json.dumps({"photos": [{"name": "a.png", "path": path}]})
        assert "is not here" in join(address, number, [sent, *SETTINGS])


def test_what_a_visitor_sends_is_counted_and_said(address, monkeypatch):
    from hf_gru_captioner.web.uploads import uploads

    few = replace(uploads().limits, visitor_files=uploads().limits.visitor_files, visitor_bytes=3_000_000)
    uploads().reset_counts()
    monkeypatch.setattr(uploads(), "limits", few)
    monkeypatch.setattr(uploads(), "local_limits", None)  # as on a page for the network
    before = {file.name for file in uploads().folder.iterdir() if file.is_file()}
    upload(address, ("a.jpg", bytes(2_000_000)))
    status, said = ask(*upload_request(address, [("b.jpg", bytes(2_000_000))]))
    assert (status, said) == (413, b"More than 3 MB were sent from here in 10 minutes. Please try again later.")
    assert {file.name for file in uploads().folder.iterdir() if file.is_file()} <= before  # nothing half is left
    uploads().reset_counts()
    monkeypatch.setattr(uploads(), "limits", replace(few, visitor_files=5))
    status, said = ask(*upload_request(address, [(f"{n}.jpg", b"") for n in range(6)]))
    assert (status, said) == (413, b"More than 5 files were sent from here in 10 minutes. Please try again later.")


@pytest.mark.parametrize(("host", "is_for_all"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_only_on_a_page_for_this_machine_alone_its_visitors_may_send_more(monkeypatch, host, is_for_all):
    from hf_gru_captioner.web.uploads import uploads

    uploads().reset_counts()
    monkeypatch.setattr(uploads(), "limits", replace(uploads().limits, visitor_files=2))
    monkeypatch.setattr(uploads(), "local_limits", None)  # and back to that of the other tests' page
    page = build_page(ServicePool(["none"], lambda name: None), load_image)
    launch(page, server_name=host)
    try:
        url, body, headers = upload_request(
            f"http://127.0.0.1:{page.server_port}/", [(f"{n}.jpg", b"") for n in range(3)]
        )
        assert ask(url, body, headers)[0] == (413 if is_for_all else 200)
        assert ask(url, body, {**headers, "X-Forwarded-For": "8.8.8.8"})[0] == 413  # by a proxy on this machine
    finally:
        page.close()
        uploads().reset_counts()


def test_sessions_that_are_left_hold_no_photo(address):
    """Gradio keeps the last input of up to 10,000 sessions."""
    import gc

    mark = "A" * 100_000
    number = number_of(address, "caption")
    for _ in range(5):
        join(address, number, [mark + os.urandom(4).hex(), "greedy", 1, 1, 1, 1, 0.9, 5, 0, "shipped", False])
    gc.collect()
    from gradio.state_holder import SessionState

    sessions = [each for each in gc.get_objects() if isinstance(each, SessionState)]
    assert not any(mark in str(session.config_values) for session in sessions)
    assert len(sessions) < 200
