import contextlib
import hashlib
import json
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_gru_captioner import Captioner
from hf_gru_captioner.training import CrossEntropy, OptimizationConfig, SelfCritical, count_ngrams, write_captions
from hf_gru_captioner.training.trainer import _parameter_groups, _share_of_peak


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def are_equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_falls_and_the_run_is_recorded(fit, tmp_path):
    _, history = fit(epochs=30, label_smoothing=0.0)
    losses = [record["loss"] for record in history]
    assert losses[-1] < 0.6 * losses[0]
    recorded = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in recorded] == list(range(1, 31))
    assert recorded[-1]["loss"] == pytest.approx(losses[-1], abs=1e-4)


def test_the_best_epoch_is_kept_not_the_last(fit, tmp_path):
    seen = []

    def scores(model):
        seen.append(weights_of(model))
        return {"cider": [1.0, 3.0, 2.0][len(seen) - 1]}

    fit(scores, checkpoint_precision="float32")
    kept = weights_of(Captioner.from_pretrained(tmp_path / "run" / "checkpoint").model)
    assert are_equal(kept, seen[1])
    assert not are_equal(kept, seen[2])


def test_a_run_without_progress_stops_early(fit):
    scores = iter([1.0, 3.0, 2.0, 3.0, 2.5, 9.0])
    _, history = fit(lambda model: {"cider": next(scores)}, epochs=6, patience=3)
    assert [record["cider"] for record in history] == [1.0, 3.0, 2.0, 3.0, 2.5]


def test_with_one_validation_image_the_epoch_of_the_best_bleu_is_kept_and_patience_counts_from_it(fit, tmp_path):
    seen, bleu = [], iter([0.1, 0.3, 0.3, 0.2, 0.9])

    def scores(model):
        seen.append(weights_of(model))
        return {"cider": 0.0, "bleu_4": next(bleu)}

    _, history = fit(scores, checkpoint_precision="float32", epochs=5, patience=2)
    assert len(history) == 4  # epoch 3 is no better than epoch 2
    kept = weights_of(Captioner.from_pretrained(tmp_path / "run" / "checkpoint").model)
    assert are_equal(kept, seen[2])


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32"])
def test_a_checkpoint_is_written_in_the_precision_asked_for(fit, tmp_path, precision):
    model, _ = fit(checkpoint_precision=precision, epochs=1)
    weights = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    assert {weight.dtype for weight in weights.values() if weight.is_floating_point()} == {getattr(torch, precision)}
    assert model.dtype == torch.float32


def test_a_maximum_gradient_norm_of_0_clips_nothing(fit):
    unclipped, clipped = (weights_of(fit(epochs=1, max_grad_norm=norm, folder=f"run-{norm}")[0]) for norm in (0.0, 1e9))
    assert are_equal(unclipped, clipped)


def test_the_frozen_encoder_does_not_move(fit, make_model):
    model, _ = fit()
    before = make_model(dropout=0.1).state_dict()
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved
    assert not any(name.startswith("encoder.vision") for name in moved)


def test_a_trainable_encoder_moves_at_its_own_rate(fit, make_model):
    before = make_model(dropout=0.1).state_dict()

    def moved(rate):
        model, _ = fit(encoder_learning_rate=rate, epochs=1, folder=f"run-{rate}")
        return sum(
            float((weight - before[name]).abs().sum())
            for name, weight in model.state_dict().items()
            if name.startswith("encoder.vision") and weight.is_floating_point()
        )

    assert 0 < moved(1e-6) < 0.1 * moved(1e-4)


def test_micro_batches_make_the_same_steps(make_model, make_trainer, make_batches):
    """Up to rounding; captions differ in length, so micro-batches differ in their number of labels."""
    trained = []
    for parts in (1, 2, 4):
        trainer = make_trainer(model=make_model(dropout=0.0), micro_batches=parts, folder=f"{parts} parts")
        history = trainer.fit(make_batches(8, 4, micro_batches=parts), lambda model: {"cider": 0.0})
        trained.append((torch.cat([weight.flatten() for weight in trainer.model.decoder.parameters()]), history))
    for weights, history in trained[1:]:
        torch.testing.assert_close(weights, trained[0][0], atol=2e-4, rtol=0)
        assert [each["loss"] for each in history] == pytest.approx([each["loss"] for each in trained[0][1]], rel=1e-4)


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine():
    rates = [_share_of_peak(step, 100, 10) for step in range(101)]
    assert rates[0] == 0.1
    assert rates[4] == 0.5
    assert rates[9] == rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)


def test_a_run_of_one_step_learns(make_trainer, make_batches):
    trainer = make_trainer(epochs=1)
    before = [weight.clone() for weight in trainer.model.decoder.parameters()]
    trainer.fit(make_batches(4, 4), lambda model: {"cider": 0.0})
    assert any(not weight.equal(old) for weight, old in zip(trainer.model.decoder.parameters(), before, strict=True))
    assert trainer.progress.step == 1
    assert _share_of_peak(0, 1, 1) == _share_of_peak(0, 100, 0) == 1


def test_only_matrices_decay_and_the_encoder_has_its_own_rate(model):
    model.set_encoder_trainable()
    groups = _parameter_groups(model, OptimizationConfig(encoder_learning_rate=1e-5, learning_rate=1e-3))
    assert [(group["weight_decay"], group["peak_rate"]) for group in groups] == [
        (0.01, 1e-5),
        (0.0, 1e-5),
        (0.01, 1e-3),
        (0.0, 1e-3),
    ]
    assert {parameter.ndim for group in groups[1::2] for parameter in group["params"]} == {1}
    of_encoder = {id(parameter) for parameter in model.encoder.vision.parameters()}
    assert {id(parameter) for group in groups[:2] for parameter in group["params"]} == of_encoder
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


class Killed(BaseException):
    """Not an Exception, so that nothing catches it."""


def objectives(processor):
    labels = [[[4, 5, 2], [6, 7, 2]], [[4, 8, 2]]]
    return {
        "cross-entropy": lambda: CrossEntropy(0.1),
        "scheduled sampling": lambda: CrossEntropy(0.1, scheduled_sampling=0.5, attention_penalty=0.1),
        "self-critical": lambda: SelfCritical(count_ngrams(labels), samples=2, cross_entropy_weight=0.2),
    }


@pytest.mark.parametrize("objective", ["cross-entropy", "scheduled sampling", "self-critical"])
@pytest.mark.parametrize("killed_at", [1, 3, 4, 5])
def test_a_killed_run_ends_with_the_very_weights_of_an_undisturbed_one(
    make_trainer, make_batches, processor, objective, killed_at
):
    """Three epochs of two steps, with a state after each; killed at a step, or (4) during the second validation."""
    make_objective = objectives(processor)[objective]
    options = {"state_steps": 1, "micro_batches": 1}

    def scores(model):
        return {"cider": float(sum(weight.double().sum() for weight in model.state_dict().values()))}

    undisturbed = make_trainer(make_objective(), folder="undisturbed", **options)
    undisturbed.model.generation_config.update(max_new_tokens=5)
    history = undisturbed.fit(make_batches(), scores)

    killed = make_trainer(make_objective(), folder="killed", **options)
    killed.model.generation_config.update(max_new_tokens=5)
    prepare = killed.objective.prepare

    def dying_prepare(*arguments):
        if killed.progress.step + 1 == killed_at:
            raise Killed
        return prepare(*arguments)

    def dying_scores(model):
        if killed.progress.step == killed_at:
            raise Killed
        return scores(model)

    killed.objective.prepare = dying_prepare
    with pytest.raises(Killed):
        killed.fit(make_batches(), dying_scores)
    torch.manual_seed(99)  # what the generators hold in a new process is anything
    resumed = make_trainer(make_objective(), folder="killed", **options)
    resumed.model.generation_config.update(max_new_tokens=5)
    torch.manual_seed(99)
    again = resumed.fit(make_batches(), scores)

    assert resumed.progress.step == 6
    assert are_equal(weights_of(resumed.model), weights_of(undisturbed.model))
    assert are_equal(weights_of(resumed.average.model), weights_of(undisturbed.average.model))
    without_time = [
        {name: value for name, value in record.items() if "seconds" not in name} for record in (*history, *again)
    ]
    assert without_time[:3] == without_time[3:]
    kept = [load_file(trainer.output_dir / "checkpoint" / "model.safetensors") for trainer in (resumed, undisturbed)]
    assert are_equal(*kept)


def test_a_finished_run_is_not_run_again(make_trainer, make_batches, monkeypatch):
    make_trainer().fit(make_batches(), lambda model: {"cider": 1.0})
    again = make_trainer()
    monkeypatch.setattr(again.objective, "prepare", None)
    assert [record["cider"] for record in again.fit(make_batches(), None)] == [1.0, 1.0, 1.0]


def test_a_run_that_ended_early_goes_on_with_more_epochs_and_new_patience(make_trainer, make_batches, caplog):
    caplog.set_level("INFO")
    scores = iter([3.0, 1.0, 2.0, 2.0, 1.0, 9.0, 1.0])

    def validate(model):
        return {"cider": next(scores)}

    make_trainer(epochs=5, patience=2).fit(make_batches(), validate)
    assert "stopping        after epoch 3, no better score in 2 epochs" in caplog.text
    assert len(make_trainer(epochs=5, patience=2).fit(make_batches(), validate)) == 3
    assert "had stopped     after epoch 3, no better score in 2 epochs" in caplog.text
    history = make_trainer(epochs=6, patience=2).fit(make_batches(), validate)
    assert [record["cider"] for record in history] == [3.0, 1.0, 2.0, 2.0, 1.0]
    make_trainer(epochs=6, patience=2).fit(make_batches(), None)  # has ended again
    assert len(make_trainer(epochs=7, patience=2).fit(make_batches(), validate)) == 7


def test_a_finished_run_gets_new_patience_with_more_epochs(make_trainer, make_batches):
    """With the higher learning rate the first epochs are worse."""
    scores = iter([3.0, 2.0, 1.0, 1.0, 4.0])

    def validate(model):
        return {"cider": next(scores)}

    assert len(make_trainer(epochs=2, patience=2).fit(make_batches(), validate)) == 2  # finished, not stopped
    killed = make_trainer(epochs=5, patience=2, state_steps=1)
    prepare, num_prepared = killed.objective.prepare, iter(range(4))

    def dying_prepare(*arguments):
        if next(num_prepared) == 1:
            raise Killed
        return prepare(*arguments)

    killed.objective.prepare = dying_prepare
    with pytest.raises(Killed):
        killed.fit(make_batches(), validate)
    history = make_trainer(epochs=5, patience=2).fit(make_batches(), validate)
    assert [record["cider"] for record in history] == [3.0, 2.0, 1.0, 1.0]


def test_scores_that_the_log_shows_alike_are_alike(fit, caplog):
    caplog.set_level("INFO")
    scores = iter([0.7, 0.7 + 1e-12, 0.6])
    _, history = fit(lambda model: {"cider": next(scores)})
    assert [record["cider"] for record in history] == [0.7, 0.7, 0.6]
    lines = [message for message in caplog.messages if message.startswith("epoch")]
    assert [line.endswith("best so far") for line in lines] == [True, True, False]  # of equals the last is kept


def test_a_state_of_another_run_is_named_and_skipped(make_trainer, make_batches, caplog):
    make_trainer(run="one", epochs=1).fit(make_batches(), lambda model: {"cider": 1.0})
    other = make_trainer(run="two", epochs=1)
    other.fit(make_batches(), lambda model: {"cider": 2.0})
    assert "step-00000002 is skipped: it belongs to another run" in caplog.text
    assert other.progress.history[0]["cider"] == 2.0


class Intruder:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl"])
def test_code_that_someone_put_into_a_state_does_not_run(make_trainer, make_batches, tmp_path, name):
    trainer = make_trainer(epochs=1)
    trainer.fit(make_batches(), lambda model: {"cider": 1.0})
    (folder,) = (trainer.output_dir / "state").iterdir()
    mark = tmp_path / "was run"
    (folder / name).write_bytes(pickle.dumps(Intruder(mark), protocol=2))
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / name).read_bytes()
    assert name in manifest["files"]
    manifest["files"][name] = [len(content), hashlib.sha256(content).hexdigest()]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with contextlib.suppress(pickle.UnpicklingError):  # Accelerate starts with other random numbers without a word
        make_trainer(epochs=1).fit(make_batches(), lambda model: {"cider": 1.0})
    assert not mark.exists()
    pickle.loads(content)
    assert mark.exists()  # had it been loaded


def test_a_non_finite_loss_stops_the_run_and_keeps_the_weights(make_trainer, make_batches, tmp_path):
    trainer = make_trainer(state_steps=1)
    prepare = trainer.objective.prepare

    def poisoned(model, batch, share_done):
        if trainer.progress.step == 3:
            batch["pixel_values"][:] = float("nan")
        return prepare(model, batch, share_done)

    trainer.objective.prepare = poisoned
    with pytest.raises(FloatingPointError, match="non-finite values in step 4: loss nan"):
        trainer.fit(make_batches(), lambda model: {"cider": 1.0})
    assert [path.name for path in sorted((tmp_path / "run" / "state").iterdir())] == ["step-00000002", "step-00000003"]
    kept = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    assert all(weight.isfinite().all() for weight in kept.values())
    named = json.loads((tmp_path / "run" / "bad-batch-0.json").read_text())
    assert named["step"] == 4
    assert all("dog" in caption or caption for of_image in named["captions"] for caption in of_image)
    assert len(named["captions"]) > 0


def test_a_non_finite_gradient_stops_the_run_before_the_weights_are_lost(make_trainer, make_batches):
    trainer = make_trainer(state_steps=1)
    loss = trainer.objective.loss

    def poisoned(model, batch, num_items):
        value, regions = loss(model, batch, num_items)
        if trainer.progress.step == 1:
            value = value + (0 * model.lm_head.bias.sum()).sqrt()  # 0 * inf
        return value, regions

    trainer.objective.loss = poisoned
    before: list[dict[str, torch.Tensor]] = []
    prepare = trainer.objective.prepare
    trainer.objective.prepare = lambda *arguments: (before.append(weights_of(trainer.model)), prepare(*arguments))[1]
    with pytest.raises(FloatingPointError, match="gradient norm nan"):
        trainer.fit(make_batches(), lambda model: {"cider": 1.0})
    assert are_equal(weights_of(trainer.model), before[-1])


def test_captions_of_known_regions_are_the_captions_of_their_images(model, processor, make_photo):
    pixel_values = processor(images=[make_photo(seed) for seed in range(3)]).pixel_values
    settings = {"max_new_tokens": 5, "num_beams": 2}
    regions = model.encoder.vision(pixel_values)
    expected = processor.batch_decode(model.generate(pixel_values, **settings))

    def from_regions(indices):
        return {"encoder_outputs": (regions[list(indices)],)}

    def from_pixels(indices):
        return {"pixel_values": pixel_values[list(indices)]}

    for images in (from_regions, from_pixels):
        assert write_captions(model, processor, images, 3, images_per_batch=2, **settings) == expected


def test_a_trainer_has_all_of_its_attributes_from_the_start(make_trainer, make_batches):
    trainer = make_trainer(epochs=1)
    attributes = set(vars(trainer))
    assert {"average", "optimizer", "wrapped"} <= attributes
    trainer.fit(make_batches(), lambda model: {"cider": 1.0})
    assert set(vars(trainer)) == attributes


def test_training_warns_of_nothing(fit):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(epochs=1)
