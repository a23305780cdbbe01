"""Scalars for TensorBoard, in ``runs/<name>/tensorboard/``.

Written with the ``tensorboard`` package's own record writer and protocol buffers, so neither TensorFlow nor an engine
is imported. Each start first writes a session start at the step it continues from, or 0, upon which TensorBoard forgets
what was written before from there on.
"""

from __future__ import annotations

import math
import os
import socket
import time
from typing import Any

from primus.events.scalars import scalars
from primus.events.sinks import SinkContext

FLUSH_SECONDS = 5.0


class TensorBoardSink:
    """Needs the ``tensorboard`` package; ImportError without it."""

    def __init__(self, context: SinkContext) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._pb, self._summary = event_pb2, summary_pb2
        directory = context.run_directory / "tensorboard"
        directory.mkdir(parents=True, exist_ok=True)
        # Readers take the files of a folder in the order of their names, hence the attempt before the time.
        name = f"events.out.tfevents.{context.attempt:06d}.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((directory / name).open("xb"))
        self._flushed = time.monotonic()
        self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def handle(self, record: dict[str, Any]) -> None:
        if values := scalars(record):
            summary = self._summary.Summary()
            for tag, value in values.items():
                summary.value.add(tag=tag, simple_value=value if math.isfinite(value) else math.nan)
            self._write(self._pb.Event(wall_time=record["time"], step=record["step"], summary=summary))
        elif record["event"] == "run_started":
            start = self._pb.SessionLog(status=self._pb.SessionLog.START)
            resumed_from = record.get("resumed_from")
            first = 0 if resumed_from is None else resumed_from + 1
            self._write(self._pb.Event(wall_time=record["time"], step=first, session_log=start))

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._records.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._records.close()
