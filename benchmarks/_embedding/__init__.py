"""The parts of `embedding.py`: its cells, rivals, claims and their report."""
