"""Reading and writing engines' checkpoints, each engine in a process of its own environment.

``Exchanges`` starts ``python -m primus.runtime.exchange.exchanges`` where an engine's libraries are, and asks it for
one call of ``backends.base.Exchange`` after another. A request is a line of JSON; so is each answer: ``progress``,
then ``done``, or what went wrong.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from primus import errors
from primus.backends import registry
from primus.backends.base import Exchange, Progress, environment_on
from primus.errors import CheckpointError, PrimusError, Problem, UsageError
from primus.runtime.environments import import_path, provide
from primus.runtime.environments.pins import variables_for
from primus.runtime.environments.ranks import check_backend
from primus.runtime.processes import PARENT, die_with_parent

Child = subprocess.Popen[str]


class Exchanges:
    """Processes that end with the ``with`` block, and with this process however it ends. Engines of one environment
    share one. device: the kind of device that the run trains on, whose environments are there."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        self._children: dict[str, Child] = {}

    def __enter__(self) -> Exchanges:
        return self

    def __exit__(self, *_: object) -> None:
        for environment in list(self._children):
            self._end(environment)

    @property
    def pids(self) -> list[int]:
        """Of its processes, the newest last."""
        return [child.pid for child in self._children.values()]

    def start(self, backend: str) -> None:
        """Have the environment of `backend` made if it is missing, and a process begin there. Raises UsageError when
        its checkpoints are its own."""
        engine = registry.get(backend)
        if not isinstance(engine, Exchange):
            raise UsageError(
                f"checkpoints of backend '{backend}' cannot be converted", remedy="go on with it; it offers no exchange"
            )
        environment = environment_on(engine, self._device)
        if environment in self._children:
            return
        python = provide(environment)
        check_backend(backend, python)
        self._children[environment] = subprocess.Popen(
            [python, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**variables_for(python), **import_path(), PARENT: str(os.getpid())},
            start_new_session=True,  # Ctrl+C is this process's to answer
        )

    def export_weights(self, backend: str, checkpoint: Path, directory: Path, dtype: str, progress: Progress) -> None:
        self._call(backend, progress, "export_weights", checkpoint, directory, dtype)

    def export_state(self, backend: str, checkpoint: Path, directory: Path, progress: Progress) -> None:
        self._call(backend, progress, "export_state", checkpoint, directory)

    def import_state(self, backend: str, directory: Path, checkpoint: Path, progress: Progress) -> None:
        self._call(backend, progress, "import_state", directory, checkpoint)

    def _call(self, backend: str, progress: Progress, name: str, first: Path, second: Path, *rest: str) -> None:
        """What it raises in the other process is raised here: errors of ours, and OSError. When this process is
        interrupted meanwhile the other one is killed."""
        self.start(backend)
        environment = environment_on(registry.get(backend), self._device)
        child = self._children[environment]
        request = {"backend": backend, "call": name, "paths": [str(first.absolute()), str(second.absolute())]}
        try:
            with suppress(BrokenPipeError):  # then it says nothing either
                _say(child.stdin, request | {"rest": rest})
            for line in child.stdout or ():
                answer = json.loads(line)
                if "progress" not in answer:
                    break
                progress(*answer["progress"])
            else:
                raise self._lost(backend, child)
        except BaseException:
            self._end(environment)
            raise
        if "done" not in answer:
            raise _error(answer)

    @staticmethod
    def _lost(backend: str, child: Child) -> CheckpointError:
        code = child.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return CheckpointError(
            f"the process that worked on {backend}'s checkpoint {how}",
            remedy="what it said is above; SIGKILL mostly means that memory ran out",
        )

    def _end(self, environment: str) -> None:
        with self._children.pop(environment) as child:
            child.kill()


def _error(answer: dict[str, Any]) -> BaseException:
    """What ``_described`` has made of an exception."""
    match answer:
        case {"problems": problems, "type": name}:
            raised: PrimusError = getattr(errors, name)(problems=[Problem(**problem) for problem in problems])
            return raised
        case {"errno": number, "strerror": text, "filename": filename}:
            return OSError(number, text, filename)
        case {"fault": message, "traceback": text}:
            fault = RuntimeError(message)
            fault.add_note(text)
            return fault
    return RuntimeError(f"an answer that nobody gives: {answer}")


# the other process


def main() -> None:
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    for line in sys.stdin:
        try:
            _perform(json.loads(line), lambda done, total: _say(answers, {"progress": [done, total]}))
        except Exception as error:  # noqa: BLE001 - the process that asked raises it
            _say(answers, _described(error))
        else:
            _say(answers, {"done": True})


def _perform(request: dict[str, Any], progress: Progress) -> None:
    backend = registry.get(request["backend"])
    paths = map(Path, request["paths"])
    getattr(backend, request["call"])(*paths, *request["rest"], progress)


def _described(error: Exception) -> dict[str, Any]:
    if isinstance(error, PrimusError):
        known = next(cls for cls in type(error).__mro__ if cls.__module__ == errors.__name__)
        return {"type": known.__name__, "problems": [asdict(problem) for problem in error.problems]}
    if isinstance(error, OSError) and error.errno is not None:
        return {"errno": error.errno, "strerror": error.strerror, "filename": error.filename and str(error.filename)}
    return {"fault": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def _say(stream: Any, what: dict[str, Any]) -> None:
    stream.write(json.dumps(what) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
