"""Load test of a running page: concurrent callers, with and without shared forward passes.

    python benchmarks/serving.py --seconds 20 --threads 1
    python benchmarks/serving.py --soak 300            # 64 callers for five minutes, every tenth an attacker

Server and callers share the machine. Prints captions per second, latencies, rejections, and the server's memory before
and after `--requests` further requests. The soak test compares every caption with the model's own, and fails if one is
wrong, if an attack gets any answer but a rejection, or if the server's memory grows.
"""

import argparse
import base64
import io
import json
import multiprocessing
import os
import random
import socket
import statistics
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from hf_gru_captioner.hub import example_images

CLIENTS = (1, 8, 32, 64)
CALL_ARGUMENTS = ["beam", 1, 5, 1, 1, 0.9, 24, 0, "shipped", False]  # of /caption, after the photo
SIGN = {"_type": "gradio.FileData"}
PATHS = ("/etc/passwd", "/dev/zero", "/etc", "/nowhere.png", "../../../etc/passwd", "http://127.0.0.1/a.png")
HARMLESS = "harmless"  # result of an attack that causes no error
LOOK_SECONDS = 1.0  # between memory measurements; a large photo briefly needs 200 MB
MAY_GROW = 100  # megabytes from the first two thirds of a soak test to the last
REFUSALS = (
    "base64", "not a picture", "can't be read to its end", "not on the public web", "begins with http",
    "must be a whole number from", "must be a number from", "strategy must be one of", "no such checkpoint",
    "is not here", "status 404", "status 413", "million pixels", "too large", HARMLESS,
)  # fmt: skip


def serve(max_batch: int, threads: int, pipe) -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import torch

    from hf_gru_captioner import Captioner
    from hf_gru_captioner.model import load_image
    from hf_gru_captioner.web import ServicePool, build_page, launch

    torch.set_num_threads(threads)
    pool = ServicePool(["shipped"], lambda name: Captioner.from_pretrained(), max_batch=max_batch)
    page = build_page(pool, load_image)
    launch(page, server_name="127.0.0.1")
    pipe.send(page.local_url)
    pipe.recv()


def drive(client, photos: list[str], clients: int, seconds: float, requests: int | None = None) -> dict:
    """Each client sends a request, waits for the response, and repeats."""
    waits: list[float] = []
    busy: list[str] = []
    errors: list[str] = []
    end = time.monotonic() + seconds

    def one(number: int) -> None:
        asked = 0
        while time.monotonic() < end if requests is None else asked < requests // clients:
            start = time.monotonic()
            asked += 1
            try:
                client.predict(photos[(number + asked) % len(photos)], api_name="/caption")
                waits.append(time.monotonic() - start)
            except Exception as error:
                refused = "Too many people" in str(error) or "full" in str(error).lower()
                (busy if refused else errors).append(str(error))
                time.sleep(0.05)

    start = time.monotonic()
    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(one, range(clients)))
    took = time.monotonic() - start
    waits.sort()
    return {
        "captions_a_second": len(waits) / took,
        "p50": statistics.median(waits),
        "p95": waits[int(0.95 * (len(waits) - 1))],
        "busy": len(busy),
        "errors": errors,
    }


def soak(client, photos: list[str], process, seconds: float) -> bool:
    """Prints the responses to photos, garbage and attacks, and the server's memory; returns whether all was well."""
    expected = captions_of(photos)
    attempts = garbage(client, photos) | attacks(client.src, photos)
    answers: Counter[str] = Counter()
    failures: list[str] = []
    start = time.monotonic()
    sizes = []

    def one(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < start + seconds:
            if chance.random() < 0.1:
                name = chance.choice(list(attempts))
                said = answer_to(attempts[name])
                kind = f"{name}: {said[:90]}"
                is_well = is_refusal(said)
            else:
                photo = chance.choice(photos)
                way = uploaded if chance.random() < 0.2 else sent_as_text
                said = answer_to(lambda photo=photo, way=way: way(client.src, photo))
                is_right = said == expected[photo]
                kind = f"photo {way.__name__}: {'captioned' if is_right else said[:90]}"
                is_well = is_right or is_busy(said)
            answers[kind] += 1
            if not is_well:
                failures.append(kind)
            if is_busy(said):
                time.sleep(0.05)

    with ThreadPoolExecutor(64) as threads:
        running = [threads.submit(one, number) for number in range(64)]
        while not all(each.done() for each in running):
            time.sleep(min(LOOK_SECONDS, seconds / 100))
            sizes.append(memory(process))
    for each in running:
        each.result()
    for answer, count in sorted(answers.items()):
        print(f"{count:7d}  {answer}")
    for name, extreme in (("most", max), ("least", min)):
        tenths = [extreme(sizes[len(sizes) * n // 10 : len(sizes) * (n + 1) // 10]) for n in range(10)]
        print(f"{name} megabytes of the server, by tenths of the time: {', '.join(f'{size:.0f}' for size in tenths)}")
    third = len(sizes) // 3
    growth = max(sizes[-third:]) - max(sizes[:-third])
    print(f"{len(failures)} failures; the most memory of the last third is {growth:+.0f} MB from that before")
    return not failures and growth < MAY_GROW


def captions_of(photos: list[str]) -> dict[str, str]:
    from hf_gru_captioner import Captioner
    from hf_gru_captioner.web import Decoding

    captioner = Captioner.from_pretrained()
    settings = Decoding(num_captions=1).generation()
    return {photo: captioner(base64.b64decode(photo), **settings).text for photo in photos}


def answer_to(attempt: Callable[[], str]) -> str:
    try:
        return attempt()
    except Exception as error:
        return " ".join(str(error).split()) or type(error).__name__


def is_busy(said: str) -> bool:
    return "Too many" in said or "queue is full" in said.lower()


def is_refusal(said: str) -> bool:
    return is_busy(said) or any(sentence in said for sentence in REFUSALS)


def garbage(client, photos: list[str]) -> dict[str, Callable[[], str]]:
    """Typical mistakes of programs, by name."""
    torn = base64.b64encode(base64.b64decode(photos[0])[:5000]).decode()
    requests: dict[str, dict] = {
        "no base64": {"photo": "%%%"},
        "noise": {"photo": base64.b64encode(os.urandom(5000)).decode()},
        "torn": {"photo": torn},
        "loopback": {"photo": "http://127.0.0.1/photo.jpg"},
        "loopback of IPv6": {"photo": "http://[::1]/photo.jpg"},
        "beams": {"photo": photos[0], "num_beams": 99},
        "strategy": {"photo": photos[0], "strategy": "psychic"},
        "checkpoint": {"photo": photos[0], "checkpoint": "../../etc/passwd"},
        "temperature": {"photo": photos[0], "temperature": "hot"},
        "nothing": {"photo": ""},
    }
    return {
        name: lambda request=request: str(client.predict(**request, api_name="/caption"))
        for name, request in requests.items()
    }


def attacks(address: str, photos: list[str]) -> dict[str, Callable[[], str]]:
    """Deliberate attacks, by name."""
    many_pixels = io.BytesIO()
    Image.new("1", (7000, 7000)).save(many_pixels, "PNG")
    text_of_many = base64.b64encode(many_pixels.getvalue()).decode()
    too_many_pixels = io.BytesIO()
    Image.new("1", (8000, 8000)).save(too_many_pixels, "PNG")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            archive.writestr(f"../../{number}<img src=//127.0.0.1/>.png", bytes(30_000_000))

    def path(named: str) -> Callable[[], str]:
        return lambda: call(address, "caption", [{"path": named}, *CALL_ARGUMENTS])

    def upload_then_caption(name: str, content: bytes) -> str:
        (own,) = json.loads(upload(address, name, content))
        return call(address, "caption", [{"path": own}, *CALL_ARGUMENTS])

    def many(name: str, content: bytes) -> str:
        (own,) = json.loads(upload(address, name, content))
        found = call(address, "caption_many", [[{"path": own, "meta": SIGN}], *CALL_ARGUMENTS[:-1]])
        return served(found)

    def served(answer: str) -> str:
        return f"{HARMLESS}: served" if "event: complete" in answer else answer

    def hang_up() -> str:
        """Sends half a request and disconnects."""
        host = urllib.parse.urlsplit(address)
        with socket.create_connection((host.hostname, host.port), timeout=5) as server:
            server.sendall(b"POST /gradio_api/call/caption HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{")
        return f"{HARMLESS}: hung up"

    doors = (
        "openapi.json",
        "gradio_api/proxy=http://127.0.0.1/",
        "gradio_api/file=/etc/passwd",
        "gradio_api/vibe-code/",
    )
    found: dict[str, Callable[[], str]] = {f"path {named}": path(named) for named in PATHS}
    found |= {f"door {door}": lambda door=door: ask(address + door) for door in doors}
    found |= {
        "many pixels as text": lambda: served(call(address, "caption", [text_of_many, *CALL_ARGUMENTS])),
        "many pixels": lambda: served(upload_then_caption("a.png", many_pixels.getvalue())),
        "too many pixels": lambda: upload_then_caption("a.png", too_many_pixels.getvalue()),
        "too large": lambda: upload(address, "a.png", bytes(21_000_000)),
        "large text": lambda: call(address, "caption", ["A" * 11_000_000, *CALL_ARGUMENTS]),
        "archive of zeros": lambda: many("a.zip", bomb.getvalue()),
        "no archive": lambda: many("a.zip", b"PK"),
        "hanging up": hang_up,
        "past the queue": lambda: ask(f"{address}gradio_api/run/caption", b'{"data": [""]}'),
    }
    return found


def sent_as_text(address: str, photo: str) -> str:
    return caption_in(call(address, "caption", [photo, *CALL_ARGUMENTS]))


def uploaded(address: str, photo: str) -> str:
    (path,) = json.loads(upload(address, "photo.jpg", base64.b64decode(photo)))
    return caption_in(call(address, "caption", [{"path": path, "meta": SIGN}, *CALL_ARGUMENTS]))


def caption_in(answer: str) -> str:
    """The best caption in a response, or the response itself."""
    data = answer.rpartition("data: ")[2]
    try:
        (content,) = json.loads(data)
        return content["caption"]
    except (ValueError, TypeError, KeyError):
        return answer


def call(address: str, name: str, data: list) -> str:
    event = ask(f"{address}gradio_api/call/{name}", json.dumps({"data": data}).encode())
    if not event.startswith("{"):
        return event
    return ask(f"{address}gradio_api/call/{name}/{json.loads(event)['event_id']}")


def upload(address: str, name: str, content: bytes) -> str:
    """Uploads from a random address, as if behind a proxy: the page would soon reject so many photos of one visitor."""
    visitor = f"8.8.{random.randrange(256)}.{random.randrange(256)}"
    head = f'--cut\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    headers = {"Content-Type": "multipart/form-data; boundary=cut", "X-Forwarded-For": visitor}
    return ask(f"{address}gradio_api/upload", head + content + b"\r\n--cut--\r\n", headers)


def ask(url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> str:
    """The server's response, preceded by its status if it is an error."""
    request = urllib.request.Request(url, body, headers or {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return f"status {error.code}: {error.read().decode()}"


def memory(process) -> float:
    """Megabytes of the process."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="for each number of clients")
    parser.add_argument("--threads", type=int, default=1, help="for the model")
    parser.add_argument("--requests", type=int, default=2000, help="between two memory measurements; 0 for none")
    parser.add_argument("--soak", type=float, help="seconds of many callers and some garbage instead of the table")
    arguments = parser.parse_args()
    from gradio_client import Client

    photos = []
    for path in example_images():
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").save(buffer, "JPEG")
        photos.append(base64.b64encode(buffer.getvalue()).decode())

    context = multiprocessing.get_context("spawn")
    if arguments.soak:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(16, arguments.threads, theirs))
        process.start()
        is_well = soak(Client(ours.recv(), verbose=False), photos, process, arguments.soak)
        process.kill()
        sys.exit(0 if is_well else 1)

    print("| forwards | clients | captions/s | median wait, ms | 95 %, ms | busy | errors |")
    print("|---|---|---|---|---|---|---|")
    for max_batch, name in ((1, "one photo"), (16, "shared")):
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(max_batch, arguments.threads, theirs))
        process.start()
        client = Client(ours.recv(), verbose=False)
        drive(client, photos, 4, 3)
        for clients in CLIENTS:
            found = drive(client, photos, clients, arguments.seconds)
            print(
                f"| {name} | {clients} | {found['captions_a_second']:.1f} | {1000 * found['p50']:.0f} | "
                f"{1000 * found['p95']:.0f} | {found['busy']} | {len(found['errors'])} |",
                flush=True,
            )
            for error in set(found["errors"]):
                print(f"  {error[:200]}")
        if arguments.requests and max_batch > 1:
            before = memory(process)
            drive(client, photos, 16, 0, arguments.requests)
            print(
                f"\nmemory of the server: {before:.0f} MB, after {arguments.requests} requests {memory(process):.0f} MB"
            )
        ours.send(None)
        process.kill()
        process.join()


if __name__ == "__main__":
    main()
