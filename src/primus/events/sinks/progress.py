"""The live part of the console: a bar and the figures below it, redrawn a few times a second."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TextIO

from rich.console import Console as Terminal
from rich.console import ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from primus.events import units

if TYPE_CHECKING:
    from primus.events.sinks.console import Meter

REFRESHES_PER_SECOND = 6
_STYLES = {"notice": "yellow", "rank_failed": "bold red", "run_started": "bold", "run_ended": "bold"}
_GAP = "   "


class Progress:
    """Owns the bottom lines of a terminal while a run trains."""

    def __init__(self, terminal: Terminal, name: str, meter: Meter) -> None:
        self._name = name
        self._meter = meter
        self._began = time.monotonic()
        self._rooms: dict[int, int] = {}
        self._terminal = terminal
        self._live = Live(self, console=terminal, refresh_per_second=REFRESHES_PER_SECOND, redirect_stdout=False)
        self._live.start()

    @classmethod
    def on(cls, file: TextIO, name: str, meter: Meter, *, force: bool) -> Progress | None:
        """On `file` if it is a terminal that can redraw lines (or `force`), else None."""
        terminal = Terminal(file=file, force_terminal=True if force else None, highlight=False)
        if not force and (not terminal.is_terminal or terminal.is_dumb_terminal):
            return None
        return cls(terminal, name, meter)

    def say(self, clock: str, text: str, kind: str) -> None:
        """A line above the bar."""
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(style=_STYLES.get(kind, ""), overflow="fold")
        grid.add_row(clock, Text(text))
        self._terminal.print(grid)

    def close(self) -> None:
        self._live.stop()

    def __rich_console__(self, terminal: Terminal, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        yield self._bar(width)
        yield from self._figures(width)

    def _bar(self, width: int) -> Table:
        meter = self._meter
        left = meter.remaining
        done = meter.step >= meter.total or meter.ended is not None
        if done:
            state = meter.ended or "done"
        elif left is None:
            state = f"starting {units.duration(time.monotonic() - self._began)}"
        else:
            state = f"{units.duration(left)} left"
        label = f"step {meter.step:,}/{meter.total:,}  {100 * meter.step // meter.total:3d} %  {state}"
        name_width = min(len(self._name), max(0, width - len(label) - 24))
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True, pad_edge=False)
        if name_width >= 8 or name_width == len(self._name):
            grid.add_column(no_wrap=True, overflow="ellipsis", max_width=name_width, style="bold")
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(total=meter.total, completed=meter.step, pulse=left is None and not done)
        cells = [Text(self._name)] if len(grid.columns) == 3 else []
        grid.add_row(*cells, bar, Text(label))
        return grid

    def _figures(self, width: int) -> list[Text]:
        """As many lines as the width needs. A figure keeps the widest room it ever had, so that none dances."""
        lines: list[str] = []
        for index, figure in enumerate(self._meter.figures()):
            room = self._rooms[index] = max(len(figure), self._rooms.get(index, 0))
            if lines and len(lines[-1]) + len(_GAP) + room <= width:
                lines[-1] += _GAP + figure.ljust(room)
            else:
                lines.append(figure.ljust(room))
        return [Text(line, style="cyan", no_wrap=True, overflow="ellipsis") for line in lines]
