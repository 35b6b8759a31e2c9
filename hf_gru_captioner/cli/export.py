"""`gru-captioner export`: a checkpoint as graphs for ONNX Runtime and OpenVINO."""

import argparse
from pathlib import Path

from .shell import UsageError, needs_extra, quiet_transformers


def add_command(commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write a checkpoint as ONNX graphs, which run sooner",
        description="Writes the encoder and one step of the decoder as ONNX graphs, and checks that they answer as the "
        "model does. ONNX Runtime and OpenVINO run them: gru-captioner caption --backend openvino.",
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", help="folder; the checkpoint of the package when not given")
    parser.add_argument("--output", type=Path, help="folder of the graphs; onnx in the checkpoint when not given")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    quiet_transformers()
    with needs_extra("export"):
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401

    from PIL import Image

    from ..captioning import SHIPPED_CHECKPOINT, Captioner
    from ..export import export_graphs

    checkpoint = arguments.checkpoint or SHIPPED_CHECKPOINT
    if not checkpoint.is_dir():
        raise UsageError(f"{checkpoint} is no folder of a checkpoint.")
    output = arguments.output or checkpoint / "onnx"
    captioner = Captioner.from_pretrained(checkpoint)
    image_size = captioner.processor(images=Image.new("RGB", (64, 64)))["pixel_values"].shape[-2:]
    export_graphs(captioner.model, output, checkpoint / "model.safetensors", tuple(image_size))
    size = sum(path.stat().st_size for path in output.iterdir())
    print(f"written: {output}, {size / 1e6:.0f} MB")
    return 0
