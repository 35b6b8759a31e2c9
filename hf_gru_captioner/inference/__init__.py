"""Inference: backends, beam search on top of any of them, graph export, and prefetching for large image sets."""
