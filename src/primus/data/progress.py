"""Showing how far long work is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

LINE_SECONDS = 5.0


class Reporter(Protocol):
    """Where long work reports to. Sizes are bytes."""

    def note(self, text: str) -> None: ...

    def begin(self, title: str, total: int) -> None: ...

    def advance(self, size: int) -> None: ...

    def end(self) -> None: ...


class Silent:
    """Reports nothing."""

    def note(self, text: str) -> None: ...

    def begin(self, title: str, total: int) -> None: ...

    def advance(self, size: int) -> None: ...

    def end(self) -> None: ...


class Screen:
    """Reports to a console on stderr, so that stdout stays clean for results. A context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._title, self._total, self._done = "", 0, 0
        self._next_line = 0.0

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def note(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        self.console.print(text, markup=False, soft_wrap=True)

    def begin(self, title: str, total: int) -> None:
        """Start showing work of `total` bytes; it replaces the work before it."""
        self.end()
        self._title, self._total, self._done = title, max(total, 1), 0
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(compact=True),
            )
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.start()
            self._bar.add_task(title, total=self._total)
        else:
            self._next_line = time.monotonic() + LINE_SECONDS

    def advance(self, size: int) -> None:
        """`size` more bytes are done; negative to take back an estimate."""
        self._done += size
        done = min(self._done, self._total)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=done)
        elif self._title and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            percent = 100 * done // self._total
            print(f"{self._title}: {percent}% ({done >> 20} of {self._total >> 20} MiB)", file=sys.stderr, flush=True)  # noqa: T201

    def end(self) -> None:
        """Stop showing work."""
        if self._bar:
            self._bar.stop()
        self._bar, self._title = None, ""
