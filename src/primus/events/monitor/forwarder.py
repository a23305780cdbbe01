"""One receiver on a thread of its own: the records of a run, in order, until it has them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from primus.events.follow import Follower
from primus.events.jsonl import Record
from primus.events.monitor import WRITER

POLL_SECONDS = 1.0
PORTION = 500
"""Records given to a receiver at once."""
LONGEST_WAIT = 60.0
"""Seconds between two tries while a receiver is away."""

_BROKEN = (ImportError, TypeError, AttributeError, NameError, LookupError, AssertionError)
"""What a receiver raises when it is broken itself: trying again would not help."""


class Refused(Exception):
    """These records will never be taken, however often they come."""


class Off(Exception):
    """The receiver is not to be used, and why."""


class Receiver(Protocol):
    title: str
    """Its name as people spell it."""

    @property
    def first_attempt(self) -> int:
        """The attempt from which it needs records; known once it is open."""
        ...

    def open(self) -> str:
        """Get ready; called again after it raised, Off apart. Returns a line for people."""
        ...

    def take(self, records: Sequence[Record]) -> None:
        """Deliver records, each with its ``attempt``. After an exception, Refused apart, the same ones come again."""
        ...

    def close(self) -> None:
        """After the last record; called again after it raised."""
        ...


class Stream:
    """The records of a run's attempts `first` to `last`, the last one live, without this process's own."""

    def __init__(self, run_directory: Path, first: int, last: int) -> None:
        self._attempts = run_directory / "attempts"
        self._number, self._last = first, last
        self._follower = Follower(self._attempts / str(first))

    def poll(self) -> list[Record]:
        """What came since the last call; empty when there is nothing new."""
        while True:
            polled = self._follower.poll()
            records = [record for record in polled if record.get("writer") != WRITER]
            for record in records:
                record["attempt"] = self._number
            if records or (self._number >= self._last and not polled):
                return records
            if not polled:
                self._follower.close()
                self._number += 1
                self._follower = Follower(self._attempts / str(self._number))


class Forwarder:
    """notice: takes the one line a person should read; may be called from any thread."""

    def __init__(self, receiver: Receiver, run_directory: Path, attempt: int, notice: Callable[[str], None]) -> None:
        self.receiver = receiver
        self.trouble = ""
        """Why it does not get on, while it does not."""
        self.refused = 0
        self._run_directory, self._attempt = run_directory, attempt
        self._tell = notice
        self._ending = threading.Event()
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._work, name=receiver.title, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """No more records are written: deliver what is there, and close."""
        self._ending.set()

    def finished(self, deadline: float) -> bool:
        """Whether everything was delivered, or never will be and that was said, by `deadline` (monotonic)."""
        return self._finished.wait(max(0.0, deadline - time.monotonic()))

    def _notice(self, text: str) -> None:
        self._tell(f"{self.receiver.title}: {text}")

    def _work(self) -> None:
        try:
            self._follow()
        except Off as error:
            self._notice(str(error))
        except Exception as error:  # noqa: BLE001 - one receiver's fault must not end the others
            self._notice(f"failed and is off: {described(error)}")
        self._finished.set()

    def _follow(self) -> None:
        self._persist(lambda: self._notice(self.receiver.open()), again="")  # its line says that it gets on
        stream = Stream(self._run_directory, min(self.receiver.first_attempt, self._attempt), self._attempt)
        while True:
            last = self._ending.is_set()  # read before the files, so that none of it is missed
            records = stream.poll()
            for first in range(0, len(records), PORTION):
                portion = records[first : first + PORTION]
                self._persist(partial(self.receiver.take, portion))
            if not records:
                if last:
                    break
                self._ending.wait(POLL_SECONDS)
        self._persist(self.receiver.close)
        if self.refused > 1:
            self._notice(f"did not take figures {self.refused:,} times in all")

    def _persist(self, act: Callable[[], None], *, again: str = "gets on again") -> None:
        """Do it, however often that has to be tried. What succeeds at the second try is not worth a word. again: what
        is said when more were needed."""
        tries, wait = 0, 1.0
        while True:
            try:
                act()
                break
            except Refused as error:
                self.refused += 1
                if self.refused == 1:
                    self._notice(str(error))
                break
            except (Off, *_BROKEN):
                raise
            except Exception as error:  # noqa: BLE001 - the network, a server, a disk: anything may go wrong there
                tries += 1
                self.trouble = described(error)
            if tries == 2:
                self._notice(f"{self.trouble}; training goes on, and this is tried again until the run ends")
            if self._ending.wait(wait):
                time.sleep(1.0)
            wait = min(2 * wait, LONGEST_WAIT)
        if tries > 1 and again:
            self._notice(again if self.refused else f"{again}; nothing is missing")
        self.trouble = ""


def described(error: BaseException) -> str:
    """An error in one line that fits a screen."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return name if not text else f"{name}: {text if len(text) <= 300 else f'{text[:300]} ...'}"
