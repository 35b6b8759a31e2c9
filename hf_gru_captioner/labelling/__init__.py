"""Captions for photos that have none, written by another captioner, the teacher of a smaller one (docs/distillation.md).

Nothing here imports torch before it is needed.
"""
