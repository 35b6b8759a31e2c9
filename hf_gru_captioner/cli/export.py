"""`gru-captioner export`: exports a checkpoint as graphs for ONNX Runtime and OpenVINO."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError, UsageError, needs_extra, reason_of
from ..files import GRAPHS_FOLDER, WEIGHTS
from ..inference.backend import ONNXRUNTIME, OPENVINO, PYTORCH
from .shell import positive, quiet_transformers


def add_command(commands) -> None:
    parser = commands.add_parser(
        "export",
        help="export a checkpoint as graphs, which run faster",
        description="Exports the encoder and one decoder step as graphs, and checks their outputs against the model's. "
        "ONNX Runtime and OpenVINO run them: gru-captioner caption --backend openvino.",
        epilog="Without --output, graphs without weights are written into the checkpoint's folder onnx: they use the "
        "weights in its model.safetensors, and are used for captioning from then on. They depend on its architecture "
        "only, and stay valid when it is trained further. Training and push write them too.",
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", help="folder (the package's checkpoint)")
    parser.add_argument("--output", type=Path, help="write whole graphs, with their weights, into this folder instead")
    parser.add_argument(
        "--format",
        choices=("onnx", "openvino", "exported-program"),
        default="onnx",
        help="onnx runs on ONNX Runtime and OpenVINO; openvino is OpenVINO IR, which loads faster; exported-program is "
        "PyTorch's own (%(default)s)",
    )
    parser.add_argument("--int8", action="store_true", help="quantize to int8: smaller, faster, slightly lower scores")
    parser.add_argument(
        "--images", nargs="+", metavar="PATH", help="calibration set for --int8: images, folders or patterns"
    )
    parser.add_argument(
        "--num-images", type=positive, default=256, help="size of the calibration set, evenly spread (%(default)s)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.output is None and (arguments.int8 or arguments.format != "onnx"):
        raise UsageError("graphs in a checkpoint must be onnx in float32: name another folder with --output.")
    if arguments.int8 and not arguments.images:
        raise UsageError("--int8 needs a calibration set, images like those to caption: add --images FOLDER.")
    with needs_extra("export"):
        import onnxscript  # noqa: F401
        import torch  # noqa: F401
    if arguments.format == "openvino":
        with needs_extra("openvino"):
            import openvino  # noqa: F401
    quiet_transformers()
    import numpy as np

    from ..captioner import Captioner
    from ..checkpoint import SHIPPED_CHECKPOINT
    from ..inference.export import add_graphs, export_graphs
    from ..inference.graphs import GraphBackend, belong

    checkpoint = arguments.checkpoint or SHIPPED_CHECKPOINT
    if not checkpoint.is_dir():
        raise UsageError(f"{checkpoint} is not the folder of a checkpoint.")
    captioner = Captioner.from_pretrained(checkpoint, backend=PYTORCH)
    processor = captioner.processor
    if arguments.output is None:
        return _say(add_graphs(checkpoint, captioner.model, processor))
    calibration = None
    if arguments.int8:
        from .find_images import find_images

        found = find_images(arguments.images)
        if found.problems:
            raise UsageError(found.problems[0])
        if not found.paths:
            raise UsageError(f"--images: no images to calibrate with in {', '.join(arguments.images)}.")
        paths = _evenly_spread(found.paths, arguments.num_images)
        calibration = np.stack([np.asarray(processor.load_image(path)) for path in paths])
    export_graphs(
        captioner.model,
        processor,
        arguments.output,
        checkpoint / WEIGHTS,
        format=arguments.format,
        calibration=calibration,
    )
    _say(arguments.output)
    graphs = checkpoint / GRAPHS_FOLDER
    if arguments.int8 and belong(graphs, checkpoint):
        backend = OPENVINO if arguments.format == OPENVINO else ONNXRUNTIME
        in_8_bits = _encoder_ms(GraphBackend(arguments.output, backend))
        in_float32 = _encoder_ms(GraphBackend(graphs, ONNXRUNTIME, checkpoint=checkpoint))
        print(
            f"on this machine the encoder takes {in_8_bits:.1f} ms a photo in 8 bits, {in_float32:.1f} in float32; "
            "CPUs without VNNI gain less. gru-captioner score shows the loss in quality."
        )
    return 0


def _evenly_spread(paths: Sequence[str], number: int) -> list[str]:
    """`number` evenly spaced paths, starting with the first; all if there are fewer."""
    number = min(number, len(paths))
    return [paths[index * len(paths) // number] for index in range(number)]


def _encoder_ms(backend: Any) -> float:
    """The minimum of several timings, which is least affected by other load."""
    from PIL import Image

    image = Image.new("RGB", (256, 256), "grey")
    times = []
    for _ in range(12):
        start = time.perf_counter()
        backend.encode([image])
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


def ensure_graphs(checkpoint: Path) -> None:
    """Writes graphs into a checkpoint's folder if it has none, or prints why not."""
    from ..inference.graphs import belong

    if belong(checkpoint / GRAPHS_FOLDER, checkpoint):
        return
    try:
        with needs_extra("export"):
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401

            from ..captioner import Captioner
            from ..inference.export import add_graphs
        captioner = Captioner.from_pretrained(checkpoint, backend=PYTORCH)
        _say(add_graphs(checkpoint, captioner.model, captioner.processor))
    except OSError:
        raise
    except MissingExtraError as error:
        print(f"without graphs, by which ONNX Runtime captions: {error}")
    except Exception as error:  # the exporter doesn't support every encoder, and raises errors of any kind
        print(f"without graphs, PyTorch captions by it: {reason_of(error)}")


def _say(folder: Path) -> int:
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"written: {folder}, {size / 1e6:.1f} MB")
    return 0
