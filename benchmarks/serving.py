"""What a running page bears: callers at the same time, with shared forwards and without.

    python benchmarks/serving.py --seconds 20 --threads 1
    python benchmarks/serving.py --soak 600            # 64 callers for ten minutes, every tenth sends garbage

Server and callers share the machine. Prints captions a second, waiting times, refusals, and the server's memory before
and after `--requests` further requests.
"""

import argparse
import base64
import io
import multiprocessing
import os
import random
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hf_gru_captioner.hub import EXAMPLES

CLIENTS = (1, 8, 32, 64)


def serve(max_batch: int, threads: int, pipe) -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import torch

    from hf_gru_captioner import Captioner
    from hf_gru_captioner.model import load_image
    from hf_gru_captioner.web import Shelf, build_page, launch

    torch.set_num_threads(threads)
    shelf = Shelf(["shipped"], lambda name: Captioner.from_pretrained(), max_batch=max_batch)
    page = build_page(shelf, load_image)
    launch(page, server_name="127.0.0.1")
    pipe.send(page.local_url)
    pipe.recv()


def drive(client, photos: list[str], clients: int, seconds: float, requests: int | None = None) -> dict:
    """Each client asks, waits for the answer, and asks again."""
    waits, busy, errors = [], [], []
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


def soak(client, photos: list[str], process, seconds: float) -> None:
    """Prints what photos and garbage were answered with, and the server's memory each minute."""
    torn = base64.b64encode(base64.b64decode(photos[0])[:5000]).decode()
    garbage: list[dict] = [
        {"photo": "%%%"},
        {"photo": base64.b64encode(os.urandom(5000)).decode()},
        {"photo": torn},
        {"photo": "http://127.0.0.1/photo.jpg"},
        {"photo": "http://[::1]/photo.jpg"},
        {"photo": photos[0], "num_beams": 99},
        {"photo": photos[0], "strategy": "psychic"},
        {"photo": photos[0], "checkpoint": "../../etc/passwd"},
        {"photo": photos[0], "temperature": "hot"},
        {"photo": ""},
    ]
    answers: Counter[str] = Counter()
    start = time.monotonic()
    sizes = []

    def one(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < start + seconds:
            is_garbage = chance.random() < 0.1
            request = chance.choice(garbage) if is_garbage else {"photo": chance.choice(photos)}
            try:
                client.predict(**request, api_name="/caption")
                answers["photo: captioned" if not is_garbage else "garbage: captioned"] += 1
            except Exception as error:
                answers[f"{'garbage' if is_garbage else 'photo'}: {' '.join(str(error).split())[:110]}"] += 1
                time.sleep(0.05)

    with ThreadPoolExecutor(64) as threads:
        running = [threads.submit(one, number) for number in range(64)]
        while not all(each.done() for each in running):
            time.sleep(min(60, seconds / 10))
            sizes.append(f"{memory(process):.0f}")
    for answer, count in answers.most_common():
        print(f"{count:7d}  {answer}")
    print(f"megabytes of the server, a look a tenth of the time or a minute: {', '.join(sizes)}")


def memory(process) -> float:
    """Megabytes of the process."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each number of clients")
    parser.add_argument("--threads", type=int, default=1, help="of the model")
    parser.add_argument("--requests", type=int, default=2000, help="between two looks at the memory; 0 for none")
    parser.add_argument("--soak", type=float, help="seconds of many callers and some garbage instead of the table")
    arguments = parser.parse_args()
    from gradio_client import Client
    from PIL import Image

    photos = []
    for path in sorted(EXAMPLES.glob("*.jpg")):
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").save(buffer, "JPEG")
        photos.append(base64.b64encode(buffer.getvalue()).decode())

    context = multiprocessing.get_context("spawn")
    if arguments.soak:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(16, arguments.threads, theirs))
        process.start()
        soak(Client(ours.recv(), verbose=False), photos, process, arguments.soak)
        process.kill()
        return

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
