"""What `pim.py` measures and models."""
