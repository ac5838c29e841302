"""The version of the package, in the one place that setup.cfg and users read it from."""

__version__ = "0.1.0"
