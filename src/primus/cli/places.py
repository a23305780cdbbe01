"""The places' own flags: ``primus-cli PLACE [FLAGS] -- COMMAND``."""

from __future__ import annotations

import re

import click

from primus.cli.main import Segment
from primus.errors import UsageError
from primus.launch.direct import Direct

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@click.command(
    "direct",
    help="Run COMMAND's processes on this machine. For several machines that share the run directory, "
    "give the same command on each, with its own --node-rank.",
)
@click.option(
    "--nproc",
    type=click.IntRange(min=1),
    help="Processes on each node. Default: one a device of the hardware preset, else 1.",
)
@click.option("--nnodes", type=click.IntRange(min=1), default=1, show_default=True, help="Number of machines.")
@click.option("--node-rank", type=click.IntRange(min=0), default=0, show_default=True, help="Which of them this is.")
@click.option("--rdzv", metavar="HOST:PORT", default="", help="Where they meet: an address and a free port of node 0.")
@click.option(
    "--env", "pairs", metavar="K=V", multiple=True, help="Environment variable of the ranks; may be repeated."
)
def direct(nproc: int | None, nnodes: int, node_rank: int, rdzv: str, pairs: tuple[str, ...]) -> Direct:
    if rdzv and not re.fullmatch(r"(\S+|\[[0-9a-fA-F:]+\]):\d{1,5}", rdzv):
        raise UsageError(f"--rdzv {rdzv} is not HOST:PORT", remedy="e.g. --rdzv node0:29400")
    env = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not NAME.fullmatch(name):
            raise UsageError(f"--env {pair} is not NAME=VALUE", remedy="e.g. --env NCCL_DEBUG=INFO")
        env[name] = value
    return Direct(nproc, nnodes, node_rank, rdzv, env)


COMMANDS = {"direct": direct}


def parse(segment: Segment) -> Direct | None:
    """The flags of one place; None when its help was printed instead. Raises click's exceptions for wrong ones."""
    command = COMMANDS[segment.place]
    place = command.main(list(segment.arguments), prog_name=f"primus-cli {segment.place}", standalone_mode=False)
    return place if isinstance(place, Direct) else None


def check(segments: tuple[Segment, ...], words: tuple[str, ...]) -> bool:
    """Whether `words` can run in these places, whose flags are then right; False when a place printed its help.

    Raises UsageError for places that cannot be nested, and for flags that the command would ignore.
    """
    if len(segments) > 1:
        chain = " > ".join(segment.place for segment in segments)
        raise UsageError(
            f"places cannot be nested like this: {chain}", remedy="direct is the innermost, and there is one"
        )
    place = parse(segments[0])
    if place is not None and place != Direct() and words[:1] != ("train",):
        flags = " ".join(segments[0].arguments)
        raise UsageError(
            f"'{' '.join(words[:2])}' runs in one process on this machine: `{flags}` would change nothing",
            remedy="leave it out",
        )
    return place is not None


def direct_of(segments: tuple[Segment, ...]) -> Direct:
    """Where a checked command runs; without a place: direct, with its defaults."""
    return (parse(segments[0]) if segments else None) or Direct()
