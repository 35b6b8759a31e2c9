import pytest

from hf_gru_captioner.training.estimates import _duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "under a minute"),
        (59, "under a minute"),
        (61, "about 1 minute"),
        (150, "about 2 minutes"),
        (7100, "about 118 minutes"),
        (9000, "about 2.5 hours"),
    ],
)
def test_times_are_said_in_units_that_one_reads_at_a_glance(seconds, said):
    assert _duration(seconds) == said
