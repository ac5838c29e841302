"""One batch selector a file."""
