"""`gru-captioner export`: a checkpoint as graphs for ONNX Runtime and OpenVINO."""

import argparse
from pathlib import Path

from ..errors import UsageError, needs_extra
from .find_images import find_photos
from .shell import positive, quiet_transformers


def add_command(commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write a checkpoint as graphs, which run sooner",
        description="Writes the encoder and one step of the decoder as graphs, and checks that they answer as the "
        "model does. ONNX Runtime and OpenVINO run them: gru-captioner caption --backend openvino.",
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", help="folder; the checkpoint of the package when not given")
    parser.add_argument("--output", type=Path, help="folder of the graphs; onnx in the checkpoint when not given")
    parser.add_argument(
        "--format",
        choices=("onnx", "openvino", "exported-program"),
        default="onnx",
        help="onnx runs on ONNX Runtime and OpenVINO, openvino loads sooner there, exported-program is PyTorch's own "
        "(%(default)s)",
    )
    parser.add_argument("--int8", action="store_true", help="8-bit graphs: smaller, sooner, a little worse")
    parser.add_argument(
        "--photos", nargs="+", metavar="PATH", help="photos, folders or patterns that show --int8 what to expect"
    )
    parser.add_argument(
        "--num-photos", type=positive, default=256, help="how many of them it looks at, evenly spread (%(default)s)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.int8 and not arguments.photos:
        raise UsageError("--int8 needs photos like those that will be captioned: add --photos FOLDER.")
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
    from ..files import WEIGHTS
    from ..inference.export import export_graphs

    checkpoint = arguments.checkpoint or SHIPPED_CHECKPOINT
    if not checkpoint.is_dir():
        raise UsageError(f"{checkpoint} is no folder of a checkpoint.")
    output = arguments.output or checkpoint / "onnx"
    captioner = Captioner.from_pretrained(checkpoint)
    processor = captioner.processor
    calibration = None
    if arguments.int8:
        paths = list(find_photos(arguments.photos))
        paths = paths[:: max(1, len(paths) // arguments.num_photos)][: arguments.num_photos]
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
