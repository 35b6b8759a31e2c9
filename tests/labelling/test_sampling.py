import pytest
import torch
from transformers import TopPLogitsWarper

from hf_gru_captioner.labelling.sampling import PhotoNoise, samplers


def chosen(processors, scores):
    return processors(torch.zeros(len(scores), 1, dtype=torch.long), scores).argmax(dim=-1)


def test_samples_are_as_frequent_as_they_are_likely():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    names = [str(number) for number in range(4000)]
    found = chosen(PhotoNoise(names, 1, seed=0), probabilities.log().expand(4000, -1))
    frequencies = torch.bincount(found, minlength=4) / 4000
    torch.testing.assert_close(frequencies, probabilities, atol=0.025, rtol=0)  # three standard deviations


def test_a_photo_s_samples_are_the_same_in_any_batch_and_differ_from_each_other():
    scores = torch.zeros(6, 1000)
    together = chosen(PhotoNoise(["a", "b"], 3, seed=0), scores)
    alone = chosen(PhotoNoise(["b"], 3, seed=0), scores[:3])
    assert together[3:].tolist() == alone.tolist()
    assert len(set(together.tolist())) == 6
    assert chosen(PhotoNoise(["b"], 3, seed=1), scores[:3]).tolist() != alone.tolist()


def test_each_word_has_noise_of_its_own():
    noise, scores = PhotoNoise(["a"], 1, seed=0), torch.zeros(1, 1000)
    assert len({chosen(noise, scores).item() for _ in range(5)}) == 5


def test_what_is_impossible_is_never_chosen():
    scores = torch.full((50, 100), -torch.inf)
    scores[:, 7] = -80.0
    assert chosen(PhotoNoise([str(number) for number in range(50)], 1, seed=0), scores).unique().tolist() == [7]


def test_the_nucleus_is_cut_before_the_noise():
    steps = samplers([str(number) for number in range(500)], 1, temperature=0.5, top_p=0.6, seed=0)
    scores = torch.tensor([0.5, 0.3, 0.2]).log().expand(500, -1)
    # by temperature 0.5 the probabilities are squared: 0.66, 0.24, 0.11, of which the first makes up the nucleus
    assert chosen(steps, scores).unique().tolist() == [0]
    assert isinstance(steps[1], TopPLogitsWarper)
    assert len(samplers(["a"], 1, temperature=1.0, top_p=1.0, seed=0)) == 1


def test_another_number_of_captions_than_was_asked_for_is_refused():
    with pytest.raises(ValueError, match="expected scores for 3 captions, found 2"):
        PhotoNoise(["a"], 3, seed=0)(torch.zeros(2, 1), torch.zeros(2, 5))
