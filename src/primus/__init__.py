"""Primus: one experiment file, any training engine, any place."""

__version__ = "0.1.0"
