"""The rivals and the cells of `cached_embedding.py`."""
