"""The model and our collator work with transformers' Trainer: accumulation, resuming, generation, label smoothing."""

import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_gru_captioner.data import CaptionCollator


@pytest.fixture
def train(make_model, processor, make_dataset, tmp_path):
    """Trains a tiny model for three epochs on eight photos; returns the trainer."""

    def train(folder, resume=None, checkpointing=False, **settings):
        model = make_model(dropout=settings.pop("dropout", 0.0))
        model.generation_config.update(max_new_tokens=6)
        if checkpointing:
            model.set_encoder_trainable()
        arguments = Seq2SeqTrainingArguments(
            output_dir=str(tmp_path / folder),
            **{"per_device_train_batch_size": 4, **settings},
            per_device_eval_batch_size=4,
            num_train_epochs=3,
            learning_rate=1e-2,
            remove_unused_columns=False,
            predict_with_generate=True,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
            save_strategy="epoch",
        )
        rows = list(make_dataset(8))
        trainer = Seq2SeqTrainer(
            model,
            arguments,
            data_collator=CaptionCollator(processor, model),
            train_dataset=rows,
            eval_dataset=rows[:3],
            processing_class=processor,
        )
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / resume))
        return trainer

    return train


def weights_of(trainer) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in trainer.model.decoder.parameters()])


def test_gradient_accumulation_is_exact(train):
    whole = train("whole")
    parts = train("parts", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    losses = [[each["loss"] for each in trainer.state.log_history if "loss" in each] for trainer in (whole, parts)]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    torch.testing.assert_close(weights_of(whole), weights_of(parts), atol=2e-4, rtol=0)


def test_an_interrupted_run_resumes_to_the_same_weights(train):
    undisturbed = train("undisturbed", dropout=0.1)
    resumed = train("resumed", dropout=0.1, resume="undisturbed/checkpoint-4")
    assert torch.equal(weights_of(resumed), weights_of(undisturbed))


def test_captions_are_generated_for_evaluation(train, processor, make_dataset):
    trainer = train("predict")
    prediction = trainer.predict(trainer.eval_dataset)
    model = trainer.model.eval()
    for row, written in zip(trainer.eval_dataset, prediction.predictions, strict=True):
        expected = processor.batch_decode(model.generate(**processor(images=row["image"])))
        assert processor.batch_decode([written]) == expected


def test_its_label_smoothing_is_ours(train):
    """transformers' label smoothing equals the model's: the losses before the first step are the same."""
    smoothed = train("smoothed", label_smoothing_factor=0.2)
    batch = smoothed.data_collator(list(smoothed.eval_dataset))
    with torch.no_grad():
        theirs = smoothed.compute_loss(smoothed.model.eval(), dict(batch))
        ours = smoothed.model(**batch, smoothing=0.2).loss
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_its_label_smoothing_goes_with_the_weights_of_captions(train):
    smoothed = train("weighted", label_smoothing_factor=0.2)
    rows = [{**row, "caption_weights": [0.5, 2.0]} for row in smoothed.eval_dataset]
    batch, model = smoothed.data_collator(rows), smoothed.model.eval()
    assert "caption_weights" in batch
    model.zero_grad()
    smoothed.compute_loss(model, dict(batch)).backward()
    theirs = model.lm_head.weight.grad.clone()
    model.zero_grad()
    model(**batch, smoothing=0.2, num_items_in_batch=(batch["labels"] >= 0).sum()).loss.backward()
    torch.testing.assert_close(theirs, model.lm_head.weight.grad, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_of_the_encoder_changes_nothing(train):
    plain = train("plain", checkpointing=True)
    checkpointed = train("checkpointed", checkpointing=True, gradient_checkpointing=True)
    torch.testing.assert_close(weights_of(checkpointed), weights_of(plain))
