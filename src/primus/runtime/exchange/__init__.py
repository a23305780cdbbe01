"""Checkpoints between engines and Hugging Face: each engine in a process of its own environment."""
