import pytest
import torch

from hf_gru_captioner.training import fastest_precision, precision


@pytest.mark.parametrize(
    ("of_bf16", "chosen", "reason"),
    [
        (12.0, "no", "fp32, since bf16 takes 12.0 times as long on this processor"),
        (0.95, "no", "fp32, since bf16 takes 0.9 times as long on this processor"),
        (0.4, "bf16", "bf16, which takes 0.40 times as long as fp32 on this processor"),
    ],
)
def test_bf16_is_chosen_where_it_is_faster(monkeypatch, of_bf16, chosen, reason):
    monkeypatch.setattr(precision, "_milliseconds", {torch.bfloat16: of_bf16, torch.float32: 1.0}.get)
    assert fastest_precision(torch.device("cpu")) == (chosen, reason)


def test_both_precisions_are_timed_on_this_processor():
    assert all(precision._milliseconds(dtype) > 0 for dtype in (torch.float32, torch.bfloat16))
    assert fastest_precision(torch.device("cpu"))[0] in ("no", "bf16")
