import contextlib
import http.server
import io
import ipaddress
import itertools
import socket
import threading
import time
import tracemalloc
import zipfile
import zlib

import pytest
from PIL import Image

from hf_gru_captioner import untrusted_images
from hf_gru_captioner.untrusted_images import (
    Limits,
    RefusedError,
    fetch_image,
    is_public,
    open_image,
    read_images,
)


def encoded(photo, kind="PNG") -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, kind)
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    buffer.seek(0)
    return buffer


def test_pictures_are_opened_and_anything_else_is_refused(photo):
    assert open_image(encoded(photo)).size == photo.size
    for content in (b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"<svg/>", encoded(photo)[:40]):
        with pytest.raises(RefusedError, match="not a picture"):
            open_image(content)
    with pytest.raises(RefusedError, match="larger than 0 MB"):
        open_image(encoded(photo), Limits(image_bytes=100))


@pytest.mark.parametrize("side", [10_000, 14_000])
def test_a_small_file_of_too_many_pixels_is_refused_before_it_is_decoded(side, monkeypatch):
    bomb = io.BytesIO()
    Image.new("1", (side, side)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 1_000_000
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(RefusedError, match="more than 50 million pixels"):
        open_image(bomb.getvalue())


def test_the_pictures_of_an_archive_are_read_and_other_files_are_named(photo):
    good = encoded(photo)
    members = {
        "holiday/a.png": good,
        "../../etc/b.png": good,
        "C:\\c.PNG": good,
        "__MACOSX/holiday/._a.png": b"",
        ".hidden.png": b"",
        "notes.txt": b"text",
    }
    *found, (name, refusal) = read_images(zipped(members))
    assert found == [("holiday/a.png", good), ("etc/b.png", good), ("c.PNG", good)]
    assert name == "notes.txt"
    assert "not a picture" in str(refusal)
    with pytest.raises(RefusedError, match="no picture in this archive"):
        list(read_images(zipped({"notes.txt": b""})))
    with pytest.raises(RefusedError, match="not a ZIP archive"):
        list(read_images(io.BytesIO(b"PK\x03\x04 torn")))
    with pytest.raises(RefusedError, match="3 pictures in this archive; 2 can be taken"):
        list(read_images(zipped(members), Limits(archive_images=2)))


def test_an_archive_is_unpacked_no_further_than_the_limits():
    members = {f"{number}.png": bytes(3000) for number in range(4)}
    found = [content for _, content in read_images(zipped(members), Limits(image_bytes=4000, archive_bytes=7000))]
    assert found[:2] == [bytes(3000)] * 2
    assert [str(content) for content in found[2:]] == ["The archive is too large when unpacked."] * 2
    (content,) = [content for _, content in read_images(zipped({"a.png": bytes(5000)}), Limits(image_bytes=4000))]
    assert isinstance(content, RefusedError)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_that_may_want_gigabytes_to_be_unpacked_are_refused(photo, method):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a.png", encoded(photo))
    content = buffer.getvalue()
    if method == zipfile.ZIP_LZMA:  # its dictionary is 4 GB
        start = content.index(b"a.png") + len("a.png") + 4
        content = content[: start + 1] + b"\xff\xff\xff\xff" + content[start + 5 :]
    ((_, found),) = read_images(io.BytesIO(content))
    assert "unusual way" in str(found)


def test_an_archive_of_very_many_files_is_refused_before_they_are_listed():
    name = b"a.txt"
    member = b"PK\x01\x02" + bytes(24) + len(name).to_bytes(2, "little") + bytes(16) + name
    directory = member * 300_000
    end = b"PK\x05\x06" + bytes(4) + b"\xff\xff" * 2 + len(directory).to_bytes(4, "little") + bytes(6)
    tracemalloc.start()
    with pytest.raises(RefusedError, match="300000 files in this archive; 10000 can be looked at"):
        list(read_images(io.BytesIO(directory + end)))
    assert tracemalloc.get_traced_memory()[1] < 40_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../../etc/cron.d/a.png", "etc/cron.d/a.png"),
        ("/etc/a.png", "etc/a.png"),
        ("//host/a.png", "host/a.png"),
        ("C:\\Windows\\a.png", "Windows/a.png"),
        ("..\\..\\a.png", "a.png"),
        ("a/../../../a.png", "a/a.png"),
        ("\\\\host\\a.png", "host/a.png"),
        ("x" * 2000 + "/a.png", "x" * 994 + "/a.png"),
    ],
)
def test_a_member_s_path_leads_nowhere(photo, name, shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [found for found, _ in read_images(zipped({name: encoded(photo)}))] == [shown]
    assert not list(tmp_path.iterdir())


def test_a_damaged_or_encrypted_member_is_refused_alone(photo):
    good = encoded(photo)
    buffer = bytearray(zipped({"a.png": good, "b.png": good}).getvalue())
    place = buffer.find(b"b.png")
    buffer[place + 12] ^= 0xFF  # inside the data of b.png
    second = buffer.rfind(b"a.png") - 46
    found = dict(read_images(io.BytesIO(bytes(buffer))))
    assert found["a.png"] == good
    assert "damaged or encrypted" in str(found["b.png"])
    buffer[second + 8] |= 1  # says that a.png is encrypted
    found = dict(read_images(io.BytesIO(bytes(buffer))))
    assert "damaged or encrypted" in str(found["a.png"])


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("127.0.0.1", False),
        ("127.8.9.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a00:1", False),
        ("2001:0:5ef5:79fd:0:0:80ff:fffe", False),
    ],
)
def test_public_addresses_are_told_from_all_others(address, public):
    assert is_public(address) is public


# https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry, as they stood in 2025;
# multicast from iana-multicast-addresses. Those marked + are reachable from the internet, and still serve no photos.
IANA = """
0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.0/29
192.0.0.8/32 192.0.0.9/32+ 192.0.0.10/32+ 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24 192.31.196.0/24+ 192.52.193.0/24+
192.88.99.0/24 192.88.99.2/32 192.168.0.0/16 192.175.48.0/24+ 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4
240.0.0.0/4 255.255.255.255/32
::1/128 ::/128 ::ffff:0:0/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32 2001:1::1/128+ 2001:1::2/128+
2001:1::3/128+ 2001:2::/48 2001:3::/32+ 2001:4:112::/48+ 2001:10::/28 2001:20::/28+ 2001:30::/28+ 2001:db8::/32
2002::/16 2620:4f:8000::/48+ 3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8 3ffe::/16 4000::/3 ::/8
""".replace("+", "").split()


@pytest.mark.parametrize("network", IANA)
def test_no_special_network_of_iana_is_public(network):
    network = ipaddress.ip_network(network)
    middle = network[network.num_addresses // 2]
    assert not [each for each in (network[0], middle, network[-1]) if is_public(str(each))]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("168.63.129.16", False),  # Azure's host
        ("168.63.129.17", True),
        ("9.255.255.255", True),
        ("11.0.0.0", True),
        ("100.63.255.255", True),
        ("100.128.0.0", True),
        ("172.15.255.255", True),
        ("172.32.0.0", True),
        ("192.88.98.255", True),
        ("198.17.255.255", True),
        ("198.20.0.0", True),
        ("223.255.255.255", True),
        ("2001:200::1", True),
        ("2606:4700::1111", True),
        ("2a00:1450:4001:81b::200e", True),
        ("2606:4700::5efe:10.0.0.1", False),  # ISATAP
        ("2606:4700::200:5efe:127.0.0.1", False),
        ("2606:4700::200:5efe:168.63.129.16", False),
        ("2606:4700::5efe:8.8.8.8", True),
        ("fe80::5efe:8.8.8.8", False),
        ("64:ff9b::8.8.8.8", True),  # NAT64
        ("64:ff9b::168.63.129.16", False),
        ("64:ff9b::192.88.99.1", False),
        ("::ffff:8.8.8.8", False),
        ("::8.8.8.8", False),
        ("2002:808:808::", False),
    ],
)
def test_what_python_s_own_table_lacks_is_known_and_neighbours_are_public(address, public):
    assert is_public(address) is public


web_is_read = threading.Event()  # set when all of a slow answer was read


@pytest.fixture
def web(monkeypatch, photo):
    """A loopback server that stands in for the public web; its pages by path."""
    web_is_read.clear()
    pages: dict[str, tuple[int, dict[str, str], bytes]] = {"/photo.png": (200, {}, encoded(photo))}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/drip":
                self.send_response(200)
                self.end_headers()
                for _ in range(1000):  # 50 seconds
                    self.wfile.write(b"x")
                    time.sleep(0.05)
                web_is_read.set()
                return
            code, headers, body = pages.get(self.path, (404, {}, b""))
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setitem(untrusted_images.ADDRESS_PORTS, "http", server.server_port)
    monkeypatch.setattr(untrusted_images, "is_public", lambda address: address == "127.0.0.1")
    yield pages
    server.shutdown()
    server.server_close()


def names(host: str, port: int) -> list[str]:
    here, inside = "127.0.0.1", "10.0.0.1"
    return {"photos.example": [here], "private.example": [inside], "both.example": [here, inside]}[host]


def test_a_picture_of_the_web_is_fetched_through_redirects(web, photo):
    assert fetch_image("http://photos.example/photo.png", resolve=names) == encoded(photo)
    web["/moved"] = (302, {"Location": "/photo.png"}, b"")
    web["/further"] = (301, {"Location": "http://photos.example/moved"}, b"")
    assert fetch_image(" http://photos.example/further#part ", resolve=names) == encoded(photo)


def test_addresses_are_encoded_as_browsers_do(web, photo):
    web["/L%C3%B6we%20a%2Fb.png?q=%C3%BC%20%26"] = (200, {}, encoded(photo))
    hosts = []

    def resolve(host: str, port: int) -> list[str]:
        hosts.append(host)
        return ["127.0.0.1"]

    assert fetch_image("http://löwe.example/Löwe a%2Fb.png?q=ü %26", resolve=resolve) == encoded(photo)
    web["/moved"] = (302, {"Location": "/Löwe%20a%2Fb.png?q=ü %26".encode().decode("latin-1")}, b"")
    assert fetch_image("http://photos.example/moved", resolve=resolve) == encoded(photo)
    assert hosts == ["xn--lwe-sna.example", "photos.example", "photos.example"]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://private.example/photo.png", "not on the public web"),
        ("http://both.example/photo.png", "not on the public web"),  # one private address among them is one too many
        ("ftp://photos.example/photo.png", "begins with http"),
        ("file:///etc/passwd", "begins with http"),
        ("http://photos.example:22/photo.png", "no port"),
        ("http://user@photos.example/photo.png", "no user name"),
        ("http://[::1", "not an address"),
        ("http://ö..example/", "not an address"),
        ("http://photos.exämple:22/photo.png", "no port"),
        ("http://ö@photos.example/photo.png", "no user name"),
        ("photo.png", "begins with http"),
        ("http://photos.example/nowhere", "status 404"),
        ("http://photos.example/to-private", "not on the public web"),
        ("http://photos.example/to-file", "begins with http"),
        ("http://photos.example/round", "redirected too often"),
        ("http://photos.example/large", "larger than 0 MB"),
        ("http://photos.example/\r\nHost: x", "can't be reached|status 404"),
    ],
)
def test_what_is_not_a_public_picture_is_refused(web, address, said):
    web["/to-private"] = (302, {"Location": "http://private.example/photo.png"}, b"")
    web["/to-file"] = (302, {"Location": "file:///etc/passwd"}, b"")
    web["/round"] = (302, {"Location": "/round"}, b"")
    web["/large"] = (200, {}, bytes(200_000))
    with pytest.raises(RefusedError, match=said):
        fetch_image(address, Limits(image_bytes=100_000), resolve=names)


def test_a_body_that_drips_is_cut_off_at_the_deadline(web):
    with pytest.raises(RefusedError, match="too slow"):
        fetch_image("http://photos.example/drip", Limits(seconds=0.3), resolve=names)
    assert not web_is_read.is_set()


@pytest.mark.parametrize("what", ["head", "headers", "chunks", "redirects"])
def test_a_server_that_drips_or_never_ends_is_cut_off_wherever_it_does(monkeypatch, what):
    """A real server on loopback, byte by byte."""
    drops = {
        "head": itertools.chain([b"HTTP/1.1 "], itertools.repeat(b"2")),
        "headers": itertools.chain([b"HTTP/1.1 200 OK\r\n"], itertools.repeat(b"X: y\r\n")),
        "chunks": itertools.chain(
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"], itertools.repeat(b"1\r\nx\r\n")
        ),
        "redirects": itertools.chain(
            [b"HTTP/1.1 302 Found\r\nLocation: http://photos.example/"], itertools.repeat(b"a")
        ),
    }[what]

    web_is_read.clear()

    def serve():
        client, _ = listening.accept()
        with client, contextlib.suppress(OSError):
            client.recv(4096)
            for drop in itertools.islice(drops, 2500):  # 50 seconds
                client.sendall(drop)
                time.sleep(0.02)
            web_is_read.set()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        monkeypatch.setitem(untrusted_images.ADDRESS_PORTS, "http", listening.getsockname()[1])
        monkeypatch.setattr(untrusted_images, "is_public", lambda address: address == "127.0.0.1")
        with pytest.raises(RefusedError, match=r"too slow|can't be reached"):
            fetch_image("http://photos.example/a.png", Limits(seconds=0.5), resolve=names)
        assert not web_is_read.is_set()


@pytest.mark.parametrize(
    "place",
    [
        "http://127.0.0.1/a.png", "http://[::1]/a.png", "http://169.254.169.254/latest/meta-data", "//10.0.0.1/a.png",
        "http://[::ffff:10.0.0.1]/a.png", "http://0x7f.1/a.png", "http://2130706433/a.png", "http://127.1/", "gopher://a/",
        "http://photos.example:22/", "http://me@photos.example/", "http://private.example/", "\\\\10.0.0.1\\a.png",
    ],
)  # fmt: skip
def test_a_redirect_that_leads_inside_is_not_followed(monkeypatch, place):
    """The real check of addresses, with a loopback server as the only public one."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", place)
            self.end_headers()

        def log_message(self, *_):
            pass

    public = untrusted_images.is_public
    server = http.server.ThreadingHTTPServer(("127.0.0.2", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setitem(untrusted_images.ADDRESS_PORTS, "http", server.server_port)
    monkeypatch.setattr(untrusted_images, "is_public", lambda address: address == "127.0.0.2" or public(address))

    def resolve(host, port):
        known = {"photos.example": ["127.0.0.2"], "private.example": ["10.0.0.1"]}
        return known.get(host) or [found[4][0] for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]

    with pytest.raises(RefusedError):
        fetch_image("http://photos.example/begin", resolve=resolve)
    assert all(path in ("/begin", "/a.png", "//10.0.0.1/a.png") or "10.0.0.1" in path for path in asked)
    assert asked[0] == "/begin"
    server.shutdown()
    server.server_close()


def test_a_name_without_a_server_is_refused(web, monkeypatch):
    def fails(*_, **__):
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(RefusedError, match="no server of this name"):
        fetch_image("http://nowhere.example/photo.png")


def test_a_server_that_is_not_there_is_said_not_to_be_reached(monkeypatch):
    monkeypatch.setattr(untrusted_images, "is_public", lambda address: True)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setitem(untrusted_images.ADDRESS_PORTS, "http", closed.getsockname()[1])
        with pytest.raises(RefusedError, match="can't be reached"):
            fetch_image("http://photos.example/photo.png", resolve=names)


@pytest.mark.parametrize("is_silent", [False, True])
def test_another_address_of_a_server_is_tried_if_one_does_not_answer(web, photo, monkeypatch, is_silent):
    """Only addresses that were checked."""
    connect, tried = socket.create_connection, []

    def create_connection(where, timeout):
        tried.append(where[0])
        if where[0] == "127.0.0.1":
            return connect(where, timeout=timeout)
        if is_silent:
            time.sleep(timeout)
        raise TimeoutError if is_silent else ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", create_connection)
    monkeypatch.setattr(untrusted_images, "is_public", lambda address: address != "10.0.0.1")
    found = ["2001:db8::1", "2001:db8::1", "127.0.0.1"]
    limits = Limits(seconds=2)
    assert fetch_image("http://photos.example/photo.png", limits, resolve=lambda *_: found) == encoded(photo)
    assert tried == ["2001:db8::1", "127.0.0.1"]
    tried.clear()
    limits = Limits(seconds=0.3 if is_silent else 60)
    with pytest.raises(RefusedError, match="can't be reached"):
        fetch_image("http://photos.example/", limits, resolve=lambda *_: [f"::{n}" for n in range(1000)])
    assert len(tried) < 100 if is_silent else len(tried) == 1000
    tried.clear()
    with pytest.raises(RefusedError, match="not on the public web"):
        fetch_image("http://photos.example/photo.png", resolve=lambda *_: [*found, "10.0.0.1"])
    assert tried == []


def test_what_an_archive_says_of_its_sizes_is_not_believed():
    packed = zlib.compress(bytes(1_000_000), 9)[2:-4]
    buffer = bytearray(zipped({"a.png": bytes(1_000_000)}).getvalue())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = buffer.find(signature) + offset
        buffer[place : place + 4] = (10).to_bytes(4, "little")
    assert len(buffer) < len(packed) + 1000
    ((_, content),) = read_images(io.BytesIO(bytes(buffer)), Limits(image_bytes=10_000))
    assert isinstance(content, RefusedError)
