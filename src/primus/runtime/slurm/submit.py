"""Handing a run to Slurm: planned here, then queued (``sbatch``) or followed in the foreground (``srun``)."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from primus.errors import LaunchError, Problem, RunDirectoryError, UsageError
from primus.events import units
from primus.launch import slurm_client
from primus.launch.places import Places
from primus.launch.slurm import Inner, Slurm, attached, script
from primus.runtime.environments import import_path
from primus.runtime.job import Job
from primus.runtime.jobs import JobDirectory, active
from primus.runtime.lock import read_owner
from primus.runtime.run_directory import write_atomically
from primus.runtime.slurm.again import Excluded, excluded
from primus.runtime.supervise import Interrupts
from primus.runtime.training import is_complete, say, tell

CARRIED = ("PRIMUS_PYTHON", "PRIMUS_HOME", "PRIMUS_RUNS", "PRIMUS_INVOKED_AS")
"""Variables that our Python goes by. Others Slurm passes on itself, secrets among them, unless --export says not to."""

SUBMIT_SECONDS = 3.0

HOPELESS = {
    "PartitionConfig": "it asks for more nodes or time than the partition has or allows",
    "PartitionNodeLimit": "it asks for more nodes than the partition has or allows",
    "PartitionTimeLimit": "it asks for more time than the partition allows",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "BadConstraints": "no node has what it asks for",
    "AssocGrpNodeLimit": "your account may not have so many nodes",
    "AssocMaxNodePerJobLimit": "your account may not have so many nodes",
    "QOSMaxNodePerJobLimit": "your quality of service does not allow so many nodes",
}
"""Reasons for waiting that waiting does not end."""


def submit(job: Job, places: Places) -> int:
    """Queue `job`, or run it in the foreground. Returns the exit code. Raises LaunchError with what Slurm says, and
    RunDirectoryError when the run is queued or running already."""
    place = places.slurm or Slurm()
    _refuse(places)
    slurm_client.require(place.mode)
    with suppress(LaunchError) if job.container else nullcontext():  # an engine may be on the nodes alone
        job.ready()  # what is missing is made here: the nodes may have no network
    run = job.directory.path
    with _submitting(job):
        job = job.continued()
        if is_complete(job):
            return 0
        _refuse_active(run)
        directory = JobDirectory.next(run)
        avoided = excluded(run)
        for entry in avoided:
            say(f"{entry.node} is avoided: {entry.reason} (see {run / 'excluded.json'})")
        try:
            directory.write(job, places)
            if place.mode == "sbatch":
                text = script(place, inner(directory, job), [entry.node for entry in avoided])
                write_atomically(directory.script, text)
                directory.accept(slurm_client.sbatch(directory.script))
        except BaseException as error:
            shutil.rmtree(directory.path, ignore_errors=True)
            if isinstance(error, OSError):
                raise _unwritable(run, error) from error
            raise
        if place.mode == "srun":
            return _follow(directory, place, job, avoided)
    fewer = f"{place.min_nodes} to " if 0 < place.min_nodes < place.nodes else ""
    tell(
        f"queued as Slurm job {directory.id} on {fewer}{units.plural(place.nodes, 'node')}: {directory.path}\n"
        f"  state     {job.look('show')}\n"
        f"  output    {place.output or job.look('logs') + ' --job --follow'}\n"
        f"  stop      scancel {directory.id}"
    )
    _warn(directory.id)
    return 0


def _warn(number: str) -> None:
    """Slurm queues much that it will never start; it says so in the reason why the job waits."""
    until = time.monotonic() + 1.0
    with suppress(LaunchError):
        while (found := slurm_client.job(number)) and found.state == "PENDING" and not found.reason:
            if time.monotonic() > until:
                return  # it has not looked yet
            time.sleep(0.1)
        if found and found.reason in HOPELESS:
            say(f"as things are, Slurm will not start job {number} ({found.reason}): {HOPELESS[found.reason]}")


def rehearse(job: Job, places: Places) -> tuple[list[str], str]:
    """The command that ``submit`` would run now, and the script that it would hand over, if any. Writes nothing."""
    _refuse(places)
    place, directory = places.slurm or Slurm(), JobDirectory.next(job.directory.path)
    what, nodes = inner(directory, job), [entry.node for entry in excluded(job.directory.path)]
    if place.mode == "srun":
        return list(attached(place, what, nodes)), ""
    return ["sbatch", "--parsable", str(directory.script)], script(place, what, nodes)


def inner(directory: JobDirectory, job: Job) -> Inner:
    variables = {name: os.environ[name] for name in CARRIED if name in os.environ}
    return Inner(job.plan.experiment.name, sys.executable, directory.path, {**variables, **import_path()})


def _follow(directory: JobDirectory, place: Slurm, job: Job, avoided: list[Excluded]) -> int:
    """In the foreground: Ctrl-C has the run save and end, a second one ends it at once."""
    what = inner(directory, job)
    words = attached(place, what, [entry.node for entry in avoided])
    asked = 0
    with Interrupts() as interrupts:
        process = subprocess.Popen(
            words, env={**os.environ, **what.variables}, stdin=subprocess.DEVNULL, start_new_session=True
        )
        while True:
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(0.2)
                break
            if interrupts.count > asked:
                asked = interrupts.count
                # without an attempt there is nothing to save yet, and launchers that still load would only complain
                saves = asked == 1 and directory.start(0).owner() is not None
                process.send_signal(signal.SIGINT if saves else signal.SIGTERM)
    ending = directory.start(0).endings(1).get(0)
    code = ending.code if ending else 128 + interrupts.first if asked else status if 0 < status < 128 else 1
    if status and ending is None and not directory.start(0).directory.exists():
        shutil.rmtree(directory.path, ignore_errors=True)
        say("stopped before the job began" if asked else "srun has started nothing; the words above are Slurm's")
        return code
    directory.note("done" if code == 0 else "failed" if code < 128 else "stopped", reason=f"srun: {status}", final=True)
    if ending is None and asked:
        say(f"stopped before training began; continue: {job.again}")
    elif ending is None:
        say(f"the job did not come to its own end (srun: {status}); continue: {job.again}")
    return code


def _unwritable(path: Path, error: OSError) -> RunDirectoryError:
    remedy = "choose another place with --runs-dir DIR"
    return RunDirectoryError(f"cannot write here: {error.strerror}", where=str(path), remedy=remedy)


@contextmanager
def _submitting(job: Job) -> Iterator[None]:
    """One submission of a run at a time; the directory is made if need be."""
    jobs = job.directory.path / "jobs"
    try:
        jobs.mkdir(parents=True, exist_ok=True)
        lock = os.open(jobs / ".submitting", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _unwritable(jobs, error) from error
    try:
        _lock(lock, job.directory.path)
        yield
    finally:
        if not JobDirectory.all(job.directory.path):
            with suppress(OSError):  # not empty: there was a run already
                (jobs / ".submitting").unlink()
                jobs.rmdir()
                job.directory.path.rmdir()
        os.close(lock)


def _lock(descriptor: int, run: Path) -> None:
    """Raise RunDirectoryError when another command holds the lock for longer than a submission takes."""
    until = time.monotonic() + SUBMIT_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise RunDirectoryError(
                    "another command hands this run to Slurm, or stays with it in the foreground (slurm srun)",
                    where=str(run),
                    remedy="wait for it, end it, or give this run another name (name=OTHER)",
                ) from error
            time.sleep(0.1)
        except OSError:
            return None  # a file system without locks: the jobs themselves refuse each other


def _refuse_active(run: Path) -> None:
    """Raise RunDirectoryError when a job of the run waits or runs, or a process trains in it."""
    for directory in active(run):
        found = slurm_client.job(directory.id)
        if found is not None and not found.ended:
            why = f" ({found.reason})" if found.reason else ""
            raise RunDirectoryError(
                f"this run is Slurm job {directory.id} already: {found.state.lower()}{why}",
                where=str(run),
                remedy=f"wait for it, end it (scancel {directory.id}), or give this run another name (name=OTHER)",
            )
    from primus.runtime.lock import RunLock

    if read_owner(run / "lock") is not None:
        RunLock(run).release()  # raises, with the owner, when it is held


def _refuse(places: Places) -> None:
    """Raise UsageError for flags of ``direct`` that the job sets itself, and for secrets that its files would show."""
    direct, problems = places.direct, []
    if (direct.nnodes, direct.node_rank, direct.rdzv) != (1, 0, ""):
        remedy = "leave them out: slurm -N sets the nodes, and they find each other"
        problems.append(Problem("direct", "--nnodes, --node-rank and --rdzv are the job's to set", remedy))
    if problems:
        raise UsageError(problems=problems)
