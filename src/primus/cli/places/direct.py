"""The flags of ``primus-cli direct``."""

from __future__ import annotations

import os
import re

import click

from primus.config.secrets import is_secret
from primus.errors import UsageError
from primus.launch.direct import Direct

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def withheld(name: str, value: str | None) -> str | None:
    """`value`, or None for a secret: that goes on in the environment, where it is not seen, and in nothing that is
    rendered or written."""
    if value is None or not is_secret(name, value):
        return value
    os.environ[name] = value
    return None


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
def command(nproc: int | None, nnodes: int, node_rank: int, rdzv: str, pairs: tuple[str, ...]) -> Direct:
    if rdzv and not re.fullmatch(r"(\S+|\[[0-9a-fA-F:]+\]):\d{1,5}", rdzv):
        raise UsageError(f"--rdzv {rdzv} is not HOST:PORT", remedy="e.g. --rdzv node0:29400")
    env, inherited = {}, []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not NAME.fullmatch(name) or not (equals or name in os.environ):
            raise UsageError(f"--env {name} is not NAME=VALUE", remedy="e.g. --env NCCL_DEBUG=INFO")
        kept = withheld(name, value if equals else None)
        if kept is None:
            inherited.append(name)
        else:
            env[name] = kept
    return Direct(nproc, nnodes, node_rank, rdzv, env, tuple(inherited))
