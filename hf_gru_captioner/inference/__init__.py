"""Runs captioners: backends, beam search over any of them, export to graphs, and images by the thousand."""
