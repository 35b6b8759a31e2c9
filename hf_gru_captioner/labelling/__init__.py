"""Captions for photos that have none, written by a larger captioner, their teacher (docs/distillation.md).

Nothing here imports torch before it is needed.
"""
