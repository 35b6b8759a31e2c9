"""Labels uncaptioned photos with captions of a larger captioner, the teacher (docs/distillation.md).

torch is imported only when needed.
"""
