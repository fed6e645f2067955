"""The version of this package: the one fact that every room may ask for."""

__version__ = "0.1.0"
