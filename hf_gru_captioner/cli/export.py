"""`gru-captioner export`: exports a checkpoint as graphs for ONNX Runtime and OpenVINO."""

import argparse
from pathlib import Path

from ..errors import UsageError, needs_extra
from .find_images import find_images
from .shell import positive, quiet_transformers


def add_command(commands) -> None:
    parser = commands.add_parser(
        "export",
        help="export a checkpoint as graphs, which run faster",
        description="Exports the encoder and one step of the decoder as graphs, and checks that their outputs are the "
        "model's. ONNX Runtime and OpenVINO run them: gru-captioner caption --backend openvino.",
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", help="folder (the checkpoint of the package)")
    parser.add_argument("--output", type=Path, help="folder of the graphs (onnx in the checkpoint)")
    parser.add_argument(
        "--format",
        choices=("onnx", "openvino", "exported-program"),
        default="onnx",
        help="onnx runs on ONNX Runtime and OpenVINO; openvino is OpenVINO IR, which loads faster; exported-program is "
        "PyTorch's own (%(default)s)",
    )
    parser.add_argument("--int8", action="store_true", help="8-bit graphs: smaller and faster, scores a little lower")
    parser.add_argument(
        "--images", nargs="+", metavar="PATH", help="images, folders or patterns that --int8 is calibrated on"
    )
    parser.add_argument(
        "--num-images", type=positive, default=256, help="how many of them to calibrate on, evenly spread (%(default)s)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.int8 and not arguments.images:
        raise UsageError("--int8 is calibrated on images like those to be captioned: add --images FOLDER.")
    quiet_transformers()
    with needs_extra("export"):
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    if arguments.format == "openvino":
        with needs_extra("openvino"):
            import openvino  # noqa: F401
    import numpy as np

    from ..captioner import Captioner
    from ..checkpoint import SHIPPED_CHECKPOINT
    from ..files import GRAPHS_FOLDER, WEIGHTS
    from ..inference.export import export_graphs

    checkpoint = arguments.checkpoint or SHIPPED_CHECKPOINT
    if not checkpoint.is_dir():
        raise UsageError(f"{checkpoint} is not the folder of a checkpoint.")
    output = arguments.output or checkpoint / GRAPHS_FOLDER
    captioner = Captioner.from_pretrained(checkpoint)
    processor = captioner.processor
    calibration = None
    if arguments.int8:
        found = find_images(arguments.images)
        if found.problems:
            raise UsageError(found.problems[0])
        paths = found.paths[:: max(1, len(found.paths) // arguments.num_images)][: arguments.num_images]
        calibration = np.stack([np.asarray(processor.load_image(path)) for path in paths])
    export_graphs(
        captioner.model,
        processor,
        output,
        checkpoint / WEIGHTS,
        format=arguments.format,
        calibration=calibration,
    )
    size = sum(path.stat().st_size for path in output.iterdir())
    print(f"written: {output}, {size / 1e6:.0f} MB")
    return 0
