"""What a model makes of each sample, as selectors need it."""
