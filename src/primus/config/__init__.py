"""Experiment files: read with positions, merged with origins, validated all at once."""
