"""Data, stages and cells of `cf_llm.py`."""
