"""The flags of ``primus-cli direct``."""

from __future__ import annotations

import re

import click

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
def command(nproc: int | None, nnodes: int, node_rank: int, rdzv: str, pairs: tuple[str, ...]) -> Direct:
    if rdzv and not re.fullmatch(r"(\S+|\[[0-9a-fA-F:]+\]):\d{1,5}", rdzv):
        raise UsageError(f"--rdzv {rdzv} is not HOST:PORT", remedy="e.g. --rdzv node0:29400")
    env = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not NAME.fullmatch(name):
            raise UsageError(f"--env {pair} is not NAME=VALUE", remedy="e.g. --env NCCL_DEBUG=INFO")
        env[name] = value
    return Direct(nproc, nnodes, node_rank, rdzv, env)
