"""One rank of a gang: ``rank.py SPEC.json``, with RANK and WORLD_SIZE in the environment, runs the cases of a spec."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from primus.checkpoints import skipped
from primus.plan.plan import Plan

CASE_SECONDS = 240
"""A case that takes longer hangs: its ranks write their stacks to their logs, and leave."""


def _run_case(entry: dict[str, Any]) -> dict[str, Any]:
    from primus.backends import registry
    from primus.backends.base import Session
    from primus.events.types import Event

    os.environ["MASTER_PORT"] = str(entry["port"])
    plan = Plan.from_json(entry["plan"])
    rank = int(os.environ["RANK"])
    run_directory = Path(plan.run_directory)
    attempt_directory = run_directory / "attempts" / str(entry["attempt"])
    attempt_directory.mkdir(parents=True, exist_ok=True)
    events: list[dict[str, Any]] = []
    stop = entry["stop"]
    steps = [0]
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def emit(event: Event) -> None:
        events.append(event.to_record())
        if entry["relieved"] and "trying again" in events[-1].get("message", ""):
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

    def stop_requested() -> bool:
        """Asked once a step, before the update."""
        steps[0] += 1
        return stop is not None and rank == stop[0] and steps[0] >= stop[1]

    session = Session(
        rank=rank,
        local_rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        run_directory=run_directory,
        attempt_directory=attempt_directory,
        attempt=entry["attempt"],
        emit=emit,
        stop_requested=stop_requested,
    )
    result, error = None, ""
    try:
        if rank == 0:
            for action in entry["before"]:
                _prepare(*action)
        if entry["file_limit"] and not (entry["relieved"] and rank):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (entry["file_limit"], unlimited[1]))
        result = asdict(registry.get(plan.experiment.backend).run(plan, session))
    except BaseException as failure:  # noqa: BLE001 - the test looks at it
        error = "".join(traceback.format_exception(failure))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    print(f"== {entry['name']}: {result} {error}", flush=True)  # noqa: T201 - into the log of the rank
    return {"result": result, "error": error, "events": events}


def _prepare(action: str, path: str, source: str = "") -> None:
    """copy: a run's checkpoints and what it leaves out, from `source`; flip: one bit in the middle of a file; halve:
    cut a file; lose: delete the largest file of a directory; empty: make a directory with nothing in it; remove."""
    target = Path(path)
    if action == "copy":
        shutil.copytree(Path(source) / "checkpoints", target / "checkpoints")
        if (left_out := Path(source) / skipped.FILE).exists():
            shutil.copy(left_out, target)
    elif action == "flip":
        content = bytearray(target.read_bytes())
        content[len(content) // 2] ^= 1
        target.write_bytes(content)
    elif action == "halve":
        target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
    elif action == "lose":
        max((path for path in target.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size).unlink()
    elif action == "empty":
        target.mkdir()
    elif action == "remove":
        shutil.rmtree(target)
    else:
        raise ValueError(action)


def main(spec: Path) -> None:
    faulthandler.enable()
    for entry in json.loads(spec.read_text(encoding="utf-8")):
        faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
        answer = _run_case(entry)
        path = spec.parent / f"{entry['name']}-{os.environ['RANK']}.json"
        path.write_text(json.dumps(answer), encoding="utf-8")
        gc.collect()
        if "torch" in sys.modules:
            sys.modules["torch"]._dynamo.reset()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
