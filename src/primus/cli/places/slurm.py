"""The flags of ``primus-cli slurm``: Slurm's own, passed on as they are."""

from __future__ import annotations

from typing import Any

import click

from primus.launch.slurm import Slurm


class AsGiven(click.Command):
    """Leaves every word to Slurm, whose flags are many and change; only ``--help`` is ours."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if any(word in ("-h", "--help") for word in args):
            return super().parse_args(ctx, ["--help"])
        ctx.params["words"] = tuple(args)
        return []

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[sbatch|srun]", "[FLAG OF SLURM]...", "--", "COMMAND"]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Flags that primus-cli reads too"):
            formatter.write_dl(
                [
                    ("-N, --nodes N[-M]", "Nodes to ask for; N-M: the run may go on with fewer than M, down to N."),
                    ("-x, --exclude LIST", "Nodes to avoid, besides those that the run has learnt to avoid."),
                    ("--signal @SECONDS", "How long before the time limit the run saves. Default: 120."),
                    ("--exclusive, -c, --mem, ...", "By default whole nodes: --exclusive --mem=0."),
                ]
            )


@click.command(
    "slurm",
    cls=AsGiven,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run COMMAND as one job of Slurm, a launcher on each node. sbatch (the default) queues the job and returns; "
    "srun stays with it in the foreground, where Ctrl-C saves and ends it. Any other flag is Slurm's: -p, -A, -t, "
    "--gres, --switches, ...",
)
def command(**given: Any) -> Slurm:
    return Slurm.parse(given["words"])
