"""Sharing checkpoints: scores, model cards, upload and download. Works on folders and files, not on models."""

from .about import about_checkpoint
from .card import Example, count_parameters, license_of, render_card
from .fetch import fetch
from .markdown import code_span
from .names import CODE, public_name
from .publisher import Publisher
from .push import EXAMPLE_IMAGES, Pushed, card_of_checkpoint, check_name, files_of_checkpoint, push
from .scores import eval_results, keep_scores, read_card, read_scores, write_model_index
from .space import demo_folder, example_images, files_of_space

__all__ = [
    "CODE",
    "EXAMPLE_IMAGES",
    "Example",
    "Publisher",
    "Pushed",
    "about_checkpoint",
    "card_of_checkpoint",
    "check_name",
    "code_span",
    "count_parameters",
    "demo_folder",
    "eval_results",
    "example_images",
    "fetch",
    "files_of_checkpoint",
    "files_of_space",
    "keep_scores",
    "license_of",
    "public_name",
    "push",
    "read_card",
    "read_scores",
    "render_card",
    "write_model_index",
]
