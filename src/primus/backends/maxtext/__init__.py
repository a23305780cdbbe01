"""MaxText 0.2.5 on JAX as a backend. Planning imports neither; training does, in the worker process."""

from primus.backends.maxtext.backend import MaxTextBackend

__all__ = ["MaxTextBackend"]
