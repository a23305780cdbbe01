"""The one screen after a failure: the first failing rank and its node, the root traceback, the likely cause, the next
command."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from primus.events.causes import root
from primus.runtime.outcome import Failure, Outcome

MARKERS = re.compile(r"\s*[~^]+\s*")
OURS = re.compile(r'File "[^"]*/primus/runtime/')


@dataclass(frozen=True)
class Cause:
    pattern: re.Pattern[str]
    cause: str
    remedy: str


def _cause(pattern: str, cause: str, remedy: str) -> Cause:
    return Cause(re.compile(pattern), cause, remedy)


# The first that matches error or traceback is shown.
CAUSES = (
    _cause(
        r"by the kernel: out of memory \(limit",
        "the memory limit of the container is too small",
        "a larger container --memory; or a smaller train.micro_batch_size, recompute=full, fewer processes a node",
    ),
    _cause(
        r"error waiting for container",
        "the container's engine died or lost sight of it; the container may train on without it",
        "start the engine again, then give the same command: it ends what is left, and continues",
    ),
    _cause(
        r"^the agent exited with code 125",
        "the container's engine refused to start it; agent-0.log has all its words",
        "correct the flag or mount that they name, e.g. an --engine-arg",
    ),
    _cause(
        r"^the agent exited with code 137",
        "the container was killed, by its memory limit (--memory) or from outside",
        "a larger --memory, then run again: it continues from the newest checkpoint",
    ),
    _cause(
        r" was deleted or moved, so that the ranks",
        "someone cleaned up, or the file system went away",
        "run again: it continues from the newest checkpoint that is left",
    ),
    _cause(
        r"the run hangs: ",
        "one rank is behind and the others wait for it, or all wait for something else",
        "read every rank's stack; raise resilience.hang_timeout if a step may take so long",
    ),
    _cause(
        r"by the kernel: out of memory",
        "the machine ran out of memory",
        "use a smaller train.micro_batch_size, recompute=full, or fewer processes a node",
    ),
    _cause(
        r"OutOfMemoryError|HIP out of memory|CUDA out of memory|DefaultCPUAllocator: can't allocate|MemoryError",
        "out of memory on the device",
        "use a smaller train.micro_batch_size, recompute=full, or more sharding (parallel.*)",
    ),
    _cause(
        r"No space left on device|Disk quota exceeded|\[Errno 28\]",
        "the disk is full",
        "free some space (primus-cli checkpoint prune), then run again",
    ),
    _cause(
        r"Address already in use|EADDRINUSE",
        "the port of the rendezvous is taken",
        "give another port with --rdzv HOST:PORT",
    ),
    _cause(
        r"non-finite|not finite|is NaN|is infinite|(?i:loss is (nan|inf))",
        "the loss became NaN or infinite",
        "lower optimizer.lr, lengthen the warm-up, or look at the data of that step",
    ),
    _cause(
        r"ModuleNotFoundError|ImportError",
        "a package is missing or damaged in the ranks' environment",
        "primus-cli env check",
    ),
    _cause(
        r"SIGBUS|Fatal Python error: Bus error",
        "a file that was mapped into memory could not be read: a dataset that became shorter, or a failing disk",
        "look at the dataset (primus-cli data inspect), then run again: it continues from the newest checkpoint",
    ),
    _cause(
        r"SIGSEGV|SIGILL|SIGABRT|Fatal Python error",
        "native code crashed; the log has the stack of every thread",
        "check that the engine's versions fit the machine: primus-cli env check --devices",
    ),
    _cause(
        r"NCCL error|ncclSystemError|ncclUnhandledCudaError|RCCL",
        "the collective library failed",
        "run again with env.NCCL_DEBUG=INFO",
    ),
    _cause(
        r"killed by SIGKILL",
        "someone or something killed it (kill -9, a batch system, a container's memory limit)",
        "run again: it continues from the newest checkpoint",
    ),
    _cause(
        r"Permission denied|Read-only file system",
        "a file or directory cannot be written",
        "check the owner and the mount",
    ),
)


def screen(outcome: Outcome, logs: Path, every_log: str, again: str, width: int = 100) -> str:
    """The report, at most `width` columns and about 30 lines. every_log, again: the command lines that show
    the logs of all ranks and that continue the run."""
    width = max(60, min(width, 120))
    lines: list[str] = []
    text, log, remedy = outcome.agent, logs, ""
    if outcome.failures:
        first = root(outcome.failures)
        lines += _headline(first, outcome.failures, width)
        text = f"{first['traceback']}\n{first['error']}\n{outcome.agent}"
        log = logs / f"rank-{first['rank']}.log"
        remedy = first.get("remedy") or ""
        if first["traceback"].strip() and not remedy:  # an error of ours says it all without a traceback
            lines += ["", *_excerpt(first["traceback"], width)]
    else:
        what, _, words = outcome.agent.partition("\n")
        lines += _wrapped(f"the processes failed without a report: {what}", width)
        python = re.search("^(Traceback|Fatal Python error)", words, re.MULTILINE)
        lines += ["", *(_excerpt if python else _spoken)(words, width)] if words else []
    if outcome.verdict:
        lines += _wrapped(f"  {outcome.verdict}", width, 4)
    found = next((cause for cause in CAUSES if cause.pattern.search(text)), None)
    lines.append("")
    if found and not remedy:
        lines += _wrapped(f"likely cause  {found.cause}", width, 14)
    if remedy or found:
        lines += _wrapped(f"what to do    {remedy or (found.remedy if found else '')}", width, 14)
    lines.append(f"log           {log}")
    lines.append(f"all logs      {every_log}")
    lines.append(f"continue      {again}")
    return "\n".join(lines) + "\n"


def _headline(first: Failure, failures: Sequence[Failure], width: int) -> list[str]:
    at = f" after step {first['step']}" if first.get("step") is not None else ""
    others = sorted({failure["rank"] for failure in failures} - {first["rank"]})
    lines = _wrapped(f"rank {first['rank']} on {first['node']} failed{at}: {first['error']}", width)
    if others:
        named = ", ".join(map(str, others[:8])) + (" ..." if len(others) > 8 else "")
        lines.append(f"  then {len(others)} more: rank{'s' if len(others) > 1 else ''} {named}")
    return lines


def _excerpt(text: str, width: int, limit: int = 14) -> list[str]:
    """The end of a traceback or log, without our own outermost frames; long lines shortened."""
    lines = [line.rstrip() for line in text.rstrip().splitlines() if not MARKERS.fullmatch(line)]
    head: list[str] = []
    crash = next((line for line in reversed(lines) if line.startswith("Fatal Python error")), None)
    if crash is not None:
        # native code crashed: the stack of the thread that did it stands after those of the others, innermost first
        current = max(number for number, line in enumerate(lines) if "thread 0x" in line or line == crash)
        head, lines = [crash], lines[current : current + limit]
    else:
        while len(lines) > 3 and OURS.search(lines[1]):
            del lines[1:3]
        if len(lines) > limit:
            head = [f"... {len(lines) - limit} lines above are in the log"]
            lines = lines[-limit:]
    return [f"  {_shortened(line, width - 2)}" for line in [*head, *lines]]


def _spoken(text: str, width: int, limit: int = 14) -> list[str]:
    """The end of what a program said, line by line and whole: the cause may stand at the end of a long line."""
    said = (line.rstrip() for line in text.splitlines() if line.strip() and "--help' for" not in line)
    pieces = [piece for line in said for piece in textwrap.wrap(line, width - 2, break_on_hyphens=False)]
    return [f"  {piece}" for piece in pieces[-limit:]]


def _shortened(line: str, width: int) -> str:
    """At most `width` columns: a path loses its leading directories, anything else its end."""
    while len(line) > width and (path := re.search(r'"(?:\.\.\.)?/[^/"]+(/[^"]+/[^"]+)"', line)):
        line = f'{line[: path.start()]}"...{path[1]}"{line[path.end() :]}'
    return line if len(line) <= width else f"{line[: width - 3]}..."


def _wrapped(text: str, width: int, indent: int = 2) -> list[str]:
    return textwrap.wrap(
        text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    ) or [""]
