"""A captioner as two ONNX graphs: the encoder once a photo, and one step of the decoder; the search stays outside.

    encoder.onnx    pixel_values -> regions, keys, values, mean_region, states
    step.onnx       tokens, states, keys, values -> log_probabilities, new_states, attention
    graphs.json     which weights they are of

Both take any number of photos, the step any number of beams. Batch norm and activations are fused by whatever runs
them.

Letters in shape comments:
    B images    K beams    P regions    H hidden    V vocabulary
"""

import copy
import hashlib
import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

GRAPHS = "graphs.json"
MAX_DIFFERENCE = 1e-3  # between what PyTorch and a graph answer


def export_graphs(model, folder: str | Path, weights: str | Path, image_size: tuple[int, int]) -> None:
    """Writes the graphs of a captioner into a folder, whole or not at all.

    Args:
        model: A `GRUCaptionerForConditionalGeneration`, in float32 on the CPU.
        folder: Is replaced if it holds graphs.
        weights: The file that the model was loaded from, by which its graphs are known.
        image_size: Height and width of the photos as the processor gives them, in pixels.

    Raises:
        FileExistsError: The folder holds something else.
        ArithmeticError: A graph answers otherwise than the model.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / GRAPHS).is_file():
        raise FileExistsError(f"{folder} is there and holds no graphs: name another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _export(model.eval(), aside, image_size)
        (aside / GRAPHS).write_text(json.dumps({"weights": digest(weights)}) + "\n")
        aside.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def digest(weights: str | Path) -> str:
    return hashlib.sha256(Path(weights).read_bytes()).hexdigest()


class Encoder(nn.Module):
    """Photos -> all that the decoder needs to know of them."""

    def __init__(self, model):
        super().__init__()
        self.encoder, self.decoder = model.encoder, model.decoder

    def forward(self, pixel_values):
        encoded = self.encoder(pixel_values)
        keys, values, mean_region = encoded["projected_regions"]  # (B, P, H), (B, P, H), (B, H)
        return encoded["last_hidden_state"], keys, values, mean_region, self.decoder.first_states(mean_region)


class Step(nn.Module):
    """One word further: the decoder's own forward, with photos and beams apart so that both may be of any number."""

    def __init__(self, model):
        super().__init__()
        self.decoder, self.lm_head = copy.deepcopy(model.decoder), model.lm_head
        self.decoder.language_gru = OneWord(self.decoder.language_gru)
        self.decoder.fusion_gru = OneWord(self.decoder.fusion_gru)

    def forward(self, tokens, states, keys, values):  # (B, K), (2, B, K, H), (B, P, H), (B, P, H)
        mean_region = values.mean(dim=1)  # (B, H), read for the number of photos only: there are states
        words = tokens.flatten(0, 1)[:, None]  # (B K, 1)
        decoded = self.decoder(words, (keys, values, mean_region), states.flatten(1, 2))
        log_probabilities = self.lm_head(decoded.output_embeddings[:, 0]).log_softmax(dim=-1)  # (B K, V)
        outputs = [log_probabilities.unflatten(0, tokens.shape), decoded.states.unflatten(1, tokens.shape)]
        if decoded.attention_weights is not None:  # (B K, 1, A, P)
            outputs.append(decoded.attention_weights[:, 0].mean(dim=1).unflatten(0, tokens.shape))  # (B, K, P)
        return tuple(outputs)


class OneWord(nn.Module):
    """A GRU that is given one word a caption: what the exporter can translate of one."""

    def __init__(self, gru: nn.GRU):
        super().__init__()
        self.gru = gru

    def forward(self, inputs, state):  # (N, 1, E), (1, N, H)
        gru = self.gru
        weights: Any = (gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0)
        state = torch.gru_cell(inputs[:, 0], state[0], *weights)  # (N, H)
        return state[:, None], state[None]  # (N, 1, H), (1, N, H)


@torch.no_grad()
def _export(model, folder: Path, image_size: tuple[int, int]) -> None:
    images, beams = Dim("images", min=1, max=65536), Dim("beams", min=1, max=1024)
    pixel_values = torch.rand(2, 3, *image_size)
    encoder, step = Encoder(model).eval(), Step(model).eval()
    _, keys, values, _, states = (output.contiguous() for output in encoder(pixel_values))
    tokens = torch.full((2, 3), model.config.decoder_start_token_id)
    states = states[:, :, None].repeat(1, 1, 3, 1)  # (2, B, K, H)
    answers = ["log_probabilities", "new_states", "attention"]
    _write(
        encoder,
        {"pixel_values": pixel_values},
        ["regions", "keys", "values", "mean_region", "states"],
        {"pixel_values": {0: images}},
        folder / "encoder.onnx",
    )
    _write(
        step,
        {"tokens": tokens, "states": states, "keys": keys, "values": values},
        answers[: 2 if model.config.attention_type == "none" else 3],
        {"tokens": {0: images, 1: beams}, "states": {1: images, 2: beams}, "keys": {0: images}, "values": {0: images}},
        folder / "step.onnx",
    )


def _write(module: nn.Module, inputs: dict, outputs: list[str], dynamic_shapes: dict, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, on names that it gives anew
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            path,
            dynamo=True,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=dynamic_shapes,
            external_data=False,
            verbose=False,
        )
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answers = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    for name, answer, expected in zip(outputs, answers, module(*inputs.values()), strict=True):
        difference = (torch.from_numpy(answer) - expected).abs().max().item()
        if not difference <= MAX_DIFFERENCE:
            raise ArithmeticError(f"{path.name}: {name} is off by {difference:.2g}; the graphs were not kept.")
