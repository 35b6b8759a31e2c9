"""What a running page bears: callers at the same time, with shared forwards and without.

    python benchmarks/serving.py --seconds 20 --threads 1

Server and callers share the machine. Prints captions a second, waiting times, refusals, and the server's memory before
and after `--requests` further requests.
"""

import argparse
import base64
import io
import multiprocessing
import os
import statistics
import time
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


def memory(process) -> float:
    """Megabytes of the process."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each number of clients")
    parser.add_argument("--threads", type=int, default=1, help="of the model")
    parser.add_argument("--requests", type=int, default=2000, help="between two looks at the memory; 0 for none")
    arguments = parser.parse_args()
    from gradio_client import Client
    from PIL import Image

    photos = []
    for path in sorted(EXAMPLES.glob("*.jpg")):
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").save(buffer, "JPEG")
        photos.append(base64.b64encode(buffer.getvalue()).decode())

    print("| forwards | clients | captions/s | median wait, ms | 95 %, ms | busy | errors |")
    print("|---|---|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
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
