"""The command line: split into places and a command, which is run; the only place that prints errors and exits.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 128 + n stopped by signal n (130 for Ctrl-C).
"""

from __future__ import annotations

import difflib
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from primus.config.secrets import masked
from primus.errors import PrimusError, UsageError

if TYPE_CHECKING:
    from primus.cli.places.named import Named

try:
    import click
except ImportError as missing:
    remedy = "install requirements/launcher.lock into it, or unset PRIMUS_PYTHON and leave the virtual environment"
    if (Path(sys.prefix) / "complete").exists():  # made by us
        remedy = f"remove {sys.prefix}, and the next call makes it anew"
    sys.stderr.write(f"primus-cli: {missing} in {sys.executable}: {remedy}\n")
    sys.exit(1)

EXAMPLES = """\
primus-cli train pretrain --config examples/quickstart.yaml
primus-cli train pretrain --config my.yaml optimizer.lr=1e-4 --dry-run
primus-cli direct --nproc 8 -- train pretrain --config my.yaml
primus-cli config show --why optimizer.lr my.yaml"""

# Verb -> one line of help. Kept here so that --help imports none of them.
VERBS = {
    "train": "Train a model: pretrain.",
    "data": "Prepare token datasets and look into them.",
    "config": "Show, check, compare and import experiment files; the key reference.",
    "run": "List, show and plot runs; read their logs.",
    "numerics": "Compare what two runs computed, step by step.",
    "checkpoint": "List, verify, convert and prune checkpoints.",
    "env": "List, make and check the Python environments.",
}
PLACES = {
    "direct": "Processes on this machine (and, by hand, on others beside it). The default.",
    "container": "The same, in a container of docker, podman or apptainer.",
    "slurm": "A job of Slurm: queued (sbatch) or in the foreground (srun).",
    "kubernetes": "Pods of a Kubernetes cluster: a Job, JobSet or TrainJob.",
}


@dataclass(frozen=True)
class Segment:
    """``direct --nproc 2``: a place and its own flags."""

    place: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Invocation:
    """What verbs find in ``ctx.obj``. argv: the whole command line, without secrets, for running it again."""

    argv: tuple[str, ...]
    places: tuple[Segment, ...] = ()


class Verbs(click.Group):
    """Finds a verb's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"primus.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        _known(args[0])
        return super().resolve_command(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage("primus-cli", "[--debug] [PLACE [FLAGS] --] COMMAND [ARGUMENTS]")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from primus.cli.places.named import FILE, files, rows

        for title, table in (("Commands", VERBS), ("Places", PLACES)):
            with formatter.section(title):
                formatter.write_dl(list(table.items()))
        if files():
            with formatter.section(f"Named places ({FILE})"):
                formatter.write_dl(rows())
        with formatter.section("Options"):
            formatter.write_dl([row for option in self.get_params(ctx) if (row := option.get_help_record(ctx))])
        with formatter.section("Examples"):
            formatter.width = 200
            for line in EXAMPLES.splitlines():
                formatter.write(f"  {line}\n")


def _version(ctx: click.Context, option: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from primus import __version__

        click.echo(f"primus-cli {__version__}")
        ctx.exit()


@click.command(
    cls=Verbs,
    name="primus-cli",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Train large models: one experiment file, any engine, any place.",
    epilog="Help on a command: primus-cli COMMAND --help",
)
@click.option("--debug", is_flag=True, help="Show full tracebacks.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def root(debug: bool) -> None:
    pass


def split(argv: Sequence[str]) -> tuple[tuple[Segment, ...], tuple[str, ...]]:
    """Places, outermost first, and the command, which keeps everything after it verbatim, ``--`` included.

    A segment that begins with a place ends at the next ``--``; the first that does not is the command.
    """
    places: list[Segment] = []
    rest = tuple(argv)
    while rest and rest[0] in PLACES:
        if "--" not in rest:
            place, *flags = rest
            if set(flags) & {"-h", "--help"}:
                return (*places, Segment(place, tuple(flags))), ()
            raise UsageError(
                f"'{place}' needs a command after its flags",
                remedy=f"e.g. primus-cli {place} -- train pretrain --config FILE",
            )
        cut = rest.index("--")
        places.append(Segment(rest[0], rest[1:cut]))
        rest = rest[cut + 1 :]
    return tuple(places), rest


def run(argv: Sequence[str]) -> int:
    """Run a command line; returns the exit code of the command. Errors are raised, not printed."""
    options, rest = _leading_options(argv)
    named: tuple[Named, ...] = ()
    if any(word.startswith("@") for word in rest):
        from primus.cli.places.named import expand

        rest, named = expand(rest)
    places, command = split(rest)
    if places:
        from primus.cli.places import check
        from primus.cli.places.named import blaming

        with blaming(named):
            if not check(places, command):
                return 0
    result = root.main(
        [*options, *command], prog_name="primus-cli", standalone_mode=False, obj=Invocation(masked(argv), places)
    )
    return result if isinstance(result, int) else 0


def _leading_options(argv: Sequence[str]) -> tuple[list[str], Sequence[str]]:
    """``--debug`` and its like before the first word; the first word must be a place, named or not, or a verb."""
    words = list(argv)
    count = next((index for index, word in enumerate(words) if not word.startswith("-")), len(words))
    if count < len(words):
        _known(words[count])
    return words[:count], words[count:]


def _known(word: str) -> None:
    if word in VERBS or word in PLACES or word.startswith("@"):
        return
    close = difflib.get_close_matches(word, [*VERBS, *PLACES], n=1)
    remedy = f"did you mean '{close[0]}'?" if close else f"there are {', '.join([*VERBS, *PLACES])}"
    raise UsageError(f"there is no command or place '{word}'", remedy=remedy)


def main() -> NoReturn:
    """Entry point of ``primus-cli``: prints what went wrong, then exits."""
    argv = sys.argv[1:]
    debug = "--debug" in argv[: argv.index("--") if "--" in argv else None]
    try:
        code = run(argv or ["--help"])
        sys.stdout.flush()
    except PrimusError as error:
        if debug:
            traceback.print_exc()
        from primus.config.report import show

        show(error)
        code = error.exit_code
    except click.ClickException as error:
        _print_usage_error(error)
        code = 2
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("\nprimus-cli: interrupted\n")
        code = 130
    except BrokenPipeError:
        # The reader (`| head`) has gone; nothing more can be said to it, not even while Python shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:  # noqa: BLE001 - the last line of defence: what nobody foresaw becomes a screen too
        _print_unexpected(error, debug)
        code = 1
    sys.exit(code)


def _print_usage_error(error: click.ClickException) -> None:
    context = getattr(error, "ctx", None)
    sys.stderr.write(f"error: {error.format_message()}\n")
    if context is not None:
        sys.stderr.write(
            f"  {context.get_usage().replace('Usage: ', 'usage: ')}\n  more: {context.command_path} --help\n"
        )


def _print_unexpected(error: Exception, debug: bool) -> None:
    """A fault of ours: one short screen; the whole traceback goes to a file that can be sent along."""
    full = traceback.format_exc()
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = None if debug else _crash_file(f"primus-cli {' '.join(masked(sys.argv[1:]))}\n\n{full}")
    if where is None:
        sys.stderr.write(full)
    sys.stderr.write(f"error: {type(error).__name__}: {error}\n  at {last.filename}:{last.lineno} in {last.name}\n")
    sys.stderr.write("  this is a fault in Primus, or in a plugin, not in your input\n")
    if where is not None:
        sys.stderr.write(f"  full traceback: {where}\n")


def _crash_file(text: str) -> Path | None:
    try:
        from primus.home import primus_home

        directory = primus_home() / "crashes"
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        # arguments that are not UTF-8 reach us as lone surrogates
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except (OSError, ValueError, PrimusError):
        return None
    return path
