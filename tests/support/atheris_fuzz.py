"""Coverage-guided fuzzing of all that reads what others wrote.

    python tests/support/atheris_fuzz.py --seconds 60 [target]

Needs `pip install atheris`. Each target runs in a process of its own, begins with whole files, and ends at the first
input that raises what it may not, takes more than 20 seconds or 3 GB; libFuzzer then leaves that input in a file
`crash-...` in the folder that is printed.
"""

import argparse
import io
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

MAX_LENGTH = 4096  # bytes of an input
SECONDS_OF_ONE = 20
MEGABYTES = 3000


def _encoded(kind: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((16, 12)).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def _zipped(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a.png", _encoded("PNG"))
        archive.writestr("b/c.jpg", b"x" * 300)
    return buffer.getvalue()


def image(folder: Path):
    from hf_gru_captioner.model import load_image

    def run(content: bytes) -> None:
        try:
            load_image(content, size=(16, 16))
        except ValueError as error:
            _check_said(error)

    kinds = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO", "PPM", "TGA", "JPEG2000", "PCX", "DIB", "SGI")
    return run, [_encoded(kind) for kind in kinds]


def captions(folder: Path):
    from hf_gru_captioner.data.caption_files import read_caption_file

    names = ["t.csv", "t.tsv", "t.jsonl", "t.json", "t.txt", "t.token"]

    def run(content: bytes) -> None:
        path = folder / names[content[0] % len(names) if content else 0]
        path.write_bytes(content[1:])
        try:
            for photo in read_caption_file(path):
                "".join((photo.path, photo.image_id, photo.split or "", *photo.captions)).encode()
        except ValueError as error:
            _check_said(error, path)

    rows = '{"image": "a.jpg", "captions": ["a dog"], "split": "val", "image_id": 3}'
    coco = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "a dog"}]}
    karpathy = {"images": [{"filename": "a", "split": "val", "cocoid": 1, "sentences": [{"raw": "a dog"}]}]}
    seeds = ['\0image,caption\na.jpg,"a, dog"\n', "\1image\tcaption_0\tsplit\na\tb\ttrain\n", f"\2{rows}\n{rows}\n"]
    seeds += [f"\3{json.dumps(each)}" for each in (coco, karpathy, [json.loads(rows)])]
    return run, [seed.encode() for seed in [*seeds, "\4a.jpg#0\ta dog\nb.jpg#1\ta cat\n"]]


def results(folder: Path):
    from hf_gru_captioner.evaluation.coco import read_coco_annotations, read_coco_results

    path = folder / "results.json"

    def run(content: bytes) -> None:
        path.write_bytes(content)
        for read in (read_coco_results, read_coco_annotations):
            try:
                "".join(read(path)).encode()
            except ValueError as error:
                _check_said(error, path)

    rows = [{"image_id": 1, "caption": "a dog"}]
    return run, [json.dumps(each).encode() for each in (rows, {"images": [{"id": 1}], "annotations": rows})]


def archive(folder: Path):
    from hf_gru_captioner.untrusted_images import Limits, RefusedError, open_image, read_images

    limits = Limits(image_bytes=100_000, archive_bytes=200_000, archive_images=5)

    def run(content: bytes) -> None:
        try:
            for _, picture in read_images(io.BytesIO(content), limits):
                if isinstance(picture, bytes):
                    open_image(picture, limits)
        except RefusedError as error:
            _check_said(error)

    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    return run, [_zipped(method) for method in methods]


def address(folder: Path):
    from hf_gru_captioner import untrusted_images

    answers: list[str] = []
    ask = untrusted_images._get

    def get(address, limits, deadline, resolve):
        ask(address, limits, deadline, resolve)  # refuses it, after all that it looks at
        raise AssertionError("a private address was fetched")

    def run(content: bytes) -> None:
        first, _, second = content.decode(errors="surrogateescape").partition("\n")
        answers[:] = [second]
        untrusted_images._get = get
        try:
            untrusted_images.fetch_image(first, resolve=lambda host, port: ["10.0.0.1"])
        except untrusted_images.RefusedError as error:
            _check_said(error)
        untrusted_images._get = lambda *_: answers.pop() if answers else b""
        try:
            untrusted_images.fetch_image(first)
        except untrusted_images.RefusedError as error:
            _check_said(error)

    return run, [b"http://a.example/b?c#d\nhttps://x@[::1]:80/", b"https://a.b:443/\n//c/d;e", b"ftp://a\n../x"]


def text(folder: Path):
    """Base64, addresses and settings, as programs send them to the demo."""
    import gradio as gr

    from hf_gru_captioner import Caption, untrusted_images
    from hf_gru_captioner.model import load_image
    from hf_gru_captioner.web.page import build_page
    from hf_gru_captioner.web.service import Captioned, ServicePool

    class Service:
        load = staticmethod(load_image)

        def __call__(self, photo, decoding):
            return Captioned([Caption("", 0.0, (), (), None)], 0.0, 0.0, 1)

    class Pool(ServicePool):
        def __getitem__(self, name):
            return Service()

    pool = Pool(["tiny"], lambda name: None)
    untrusted_images._resolve = lambda host, port: ["10.0.0.1"]
    page = build_page(pool, load_image, limits=untrusted_images.Limits(image_bytes=100_000))
    caption = next(each.fn for each in page.fns.values() if each.api_name == "caption")

    def run(content: bytes) -> None:
        try:
            sent = json.loads(content)
            photo, fields = (
                sent[0],
                dict(zip(("strategy", "num_captions", "top_p", "checkpoint"), sent[1:], strict=False)),
            )
        except (ValueError, TypeError, LookupError, RecursionError):
            photo, fields = content.decode("latin-1"), {}
        try:
            caption(photo, **fields)
        except gr.Error as error:
            _check_said(error)

    import base64

    photo = base64.b64encode(_encoded("PNG")).decode()
    seeds = [[photo, "beam", 3, 0.5, "tiny"], ["http://a.example/x", "greedy"], [f"data:image/png;base64,{photo}"]]
    return run, [json.dumps(seed).encode() for seed in seeds]


def _checkpoint(folder: Path, name: str):
    """A target that loads a tiny checkpoint, one file of which is the input."""
    import torch
    from transformers import CLIPImageProcessor, TimmWrapperConfig
    from transformers.utils import logging

    from hf_gru_captioner import Captioner
    from hf_gru_captioner.model import (
        GRUCaptionerConfig,
        GRUCaptionerForConditionalGeneration,
        GRUCaptionerProcessor,
    )
    from hf_gru_captioner.tokenization import build_tokenizer, special_token_ids

    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    tokenizer = build_tokenizer(["a dog runs", "two cats"], min_count=1)
    encoder = TimmWrapperConfig(architecture="test_resnet", do_pooling=False)
    sizes = {"embedding_size": 4, "hidden_size": 4, "num_attention_heads": 2}
    config = GRUCaptionerConfig(encoder_config=encoder, **sizes, **special_token_ids(tokenizer))
    model = GRUCaptionerForConditionalGeneration(config)
    model.generation_config.update(max_new_tokens=3, num_beams=2)
    size = {"height": 32, "width": 32}
    model.save_pretrained(folder)
    GRUCaptionerProcessor(CLIPImageProcessor(size=size, do_center_crop=False), tokenizer).save_pretrained(folder)
    path = folder / name
    whole = path.read_bytes()

    def run(content: bytes) -> None:
        if name.endswith(".safetensors"):  # the input is its header
            (length,) = struct.unpack("<Q", whole[:8])
            content = struct.pack("<Q", len(content)) + content + whole[8 + length :]
        path.write_bytes(content)
        try:
            Captioner.from_pretrained(folder)
        except (OSError, ValueError) as error:
            _check_said(error, folder)

    if name.endswith(".safetensors"):
        (length,) = struct.unpack("<Q", whole[:8])
        return run, [whole[8 : 8 + length]]
    return run, [json.dumps(json.loads(whole)).encode()]


def config(folder: Path):
    return _checkpoint(folder, "config.json")


def tokenizer(folder: Path):
    return _checkpoint(folder, "tokenizer.json")


def weights(folder: Path):
    return _checkpoint(folder, "model.safetensors")


def options(folder: Path):
    from hf_gru_captioner.cli.shell import UsageError
    from hf_gru_captioner.cli.training_options import read_config

    path = folder / "options.yaml"

    def run(content: bytes) -> None:
        path.write_bytes(content)
        try:
            read_config(["--config", str(path)], "train", "")
        except (UsageError, OSError, ValueError) as error:
            _check_said(error)

    return run, [path.read_bytes() for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))]


TARGETS = (image, captions, results, archive, address, text, config, tokenizer, weights, options)
READERS = ["hf_gru_captioner", "PIL", "zipfile", "csv", "json", "urllib.parse", "base64", "jsonargparse", "safetensors"]


def _check_said(error: Exception, named: Path | str = "") -> None:
    said = str(error).strip()
    assert said, repr(error)
    assert len(said) < 4000, said[:4000]
    assert "\n" not in said or type(error).__name__ == "UsageError", said  # which the shell prints in one line
    assert str(named) in said, said


def _fuzz(name: str, seconds: int, folder: Path) -> None:
    """Runs one target until its time is over; libFuzzer ends the process."""
    import atheris

    work = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    with atheris.instrument_imports(include=READERS):
        run, seeds = globals()[name](work)
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    limits = {"max_len": max(MAX_LENGTH, *map(len, seeds)), "timeout": SECONDS_OF_ONE, "rss_limit_mb": MEGABYTES}
    limits |= {"max_total_time": seconds, "print_final_stats": 1, "artifact_prefix": f"{folder}/"}
    arguments = [sys.argv[0], *(f"-{name}={value}" for name, value in limits.items()), str(corpus)]
    atheris.Setup(arguments, run)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [target.__name__ for target in TARGETS]
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {', '.join(names)}; all when none is given")
    parser.add_argument("--seconds", type=int, default=60, help="of each target (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "gru-captioner-fuzz")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(names):
        parser.error(f"no target {', '.join(sorted(unknown))}: there are {', '.join(names)}")
    if arguments.inside:
        _fuzz(arguments.targets[0], arguments.seconds, arguments.folder)
        return 0
    failures = 0
    for name in arguments.targets or names:
        folder = (arguments.folder / name).resolve()
        command = [sys.executable, __file__, name, "--inside", "--seconds", str(arguments.seconds)]
        process = subprocess.run([*command, "--folder", str(folder)], capture_output=True, text=True, errors="replace")
        runs = re.findall(r"number_of_executed_units: (\d+)", process.stderr)
        print(
            f"{name:10} {runs[-1] if runs else '?':>9} runs, {'fine' if process.returncode == 0 else 'FAILED'}",
            flush=True,
        )
        if process.returncode:
            failures += 1
            print(process.stderr[-3000:], f"the input is in {folder}", sep="\n", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
