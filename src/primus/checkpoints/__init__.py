"""Checkpoints on disk: manifest, listing, integrity, retention; Hugging Face in and out."""
