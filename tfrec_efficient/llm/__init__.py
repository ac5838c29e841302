"""Collaborative knowledge for a frozen language model."""
