import pytest
import torch

from hf_gru_captioner.training import CrossEntropy


def test_the_loss_is_the_models_with_smoothing(model, batch):
    objective = CrossEntropy(0.2)
    assert objective.prepare(model, batch, 0.5) is batch
    num_items = objective.num_items(batch)
    assert num_items == (batch["labels"] != -100).sum()
    loss, _ = objective.loss(model, batch, num_items)
    torch.testing.assert_close(loss, model(**batch, smoothing=0.2).loss)
    torch.testing.assert_close(objective.loss(model, batch, 2 * num_items)[0], loss / 2)


def test_the_penalty_is_equation_14_of_show_attend_and_tell(model, batch):
    num_items = CrossEntropy().num_items(batch)
    plain, _ = CrossEntropy().loss(model, batch, num_items)
    loss, _ = CrossEntropy(attention_penalty=0.3).loss(model, batch, num_items)
    attention = model(**batch, output_attentions=True).cross_attentions[0]  # (N, A, T, P)
    expected = 0.0
    for caption in attention:
        for region in range(caption.shape[-1]):
            looked = sum(caption[:, word, region].mean() for word in range(caption.shape[1]))
            expected = expected + (1 - looked) ** 2
    torch.testing.assert_close(loss, plain + 0.3 * expected / num_items)
    loss.backward()
    assert model.decoder.attention.query.weight.grad.abs().sum() > 0


def test_captions_count_with_their_weights(model, batch):
    """As many times as their weight says."""
    weights = torch.tensor([1, 3, 1, 1, 2, 1])
    times = torch.arange(6).repeat_interleave(weights)
    repeated = {**batch, "labels": batch["labels"][times], "image_index": batch["image_index"][times]}
    objective = CrossEntropy(0.2, attention_penalty=0.3)
    num_items = objective.num_items(repeated)
    weighted = {**batch, "caption_weights": weights.float()}
    assert objective.num_items(weighted) == num_items
    loss, _ = objective.loss(model, weighted, num_items)
    torch.testing.assert_close(loss, objective.loss(model, repeated, num_items)[0])


def test_scheduled_sampling_shows_own_words_in_a_growing_share(model, batch):
    torch.manual_seed(0)
    right = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    is_word = batch["labels"][:, :-1] >= 0  # inputs behind the start token that are no padding

    def share_replaced(share_done):
        objective = CrossEntropy(scheduled_sampling=0.8)
        shares = []
        for _ in range(20):
            prepared = objective.prepare(model, batch, share_done)
            assert torch.equal(prepared["labels"], batch["labels"])
            ids = prepared.get("decoder_input_ids", right)
            assert (ids[:, 0] == model.config.bos_token_id).all()
            shares.append((ids != right)[:, 1:][is_word].float().mean().item())
        return sum(shares) / len(shares)

    assert share_replaced(0.0) == 0
    chance_of_the_same_word = 1 / model.config.vocab_size  # about: the model is untrained
    assert share_replaced(0.5) == pytest.approx(0.4 * (1 - chance_of_the_same_word), abs=0.05)
    assert share_replaced(1.0) == pytest.approx(0.8 * (1 - chance_of_the_same_word), abs=0.05)


def test_own_words_are_drawn_from_what_the_model_thinks_at_the_place_before(model, batch):
    """A model that is certain of one word writes it everywhere; the loss is for the mixed inputs."""
    with torch.no_grad():
        model.lm_head.bias[7] = 100.0
    prepared = CrossEntropy(scheduled_sampling=1.0).prepare(model, batch, 1.0)
    is_word = batch["labels"][:, :-1] >= 0
    assert (prepared["decoder_input_ids"][:, 1:][is_word] == 7).all()
    num_items = CrossEntropy().num_items(batch)
    loss, _ = CrossEntropy().loss(model, prepared, num_items)
    torch.testing.assert_close(loss, model(**prepared).loss)
