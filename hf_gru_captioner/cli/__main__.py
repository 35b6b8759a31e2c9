"""`python -m hf_gru_captioner.cli`."""

from . import entry_point

entry_point()
