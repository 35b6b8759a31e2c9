"""Sharing a checkpoint: its scores, its card, the way to the Hub. Knows folders and files, not the model."""

from .scores import eval_results, keep_scores, read_scores, write_model_index

__all__ = ["eval_results", "keep_scores", "read_scores", "write_model_index"]
