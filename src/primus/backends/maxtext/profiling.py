"""Traces by JAX's profiler."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import jax

from primus.errors import TrainingError


class JaxTracer:
    """As ``backends.profiling.Tracer``: of a process and all its devices."""

    def start(self) -> None:
        self._directory = TemporaryDirectory(prefix="primus-trace-")
        jax.profiler.start_trace(self._directory.name)

    def stop(self, path: Path) -> None:
        jax.profiler.stop_trace()
        with self._directory as directory:
            traces = list(Path(directory).rglob("*.trace.json.gz"))
            if len(traces) != 1:
                raise TrainingError(f"JAX's profiler wrote {len(traces)} traces, not one", where=str(path))
            shutil.move(traces[0], path)
