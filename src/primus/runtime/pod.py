"""One node of a Kubernetes job: ``python -P -m primus.runtime.pod DIRECTORY`` in each of its pods.

DIRECTORY is a mounted ConfigMap: the plan, made where the job was submitted, and the command line that made it. Which
node this is tells the index that an Indexed Job gives its pods; the nodes meet at ``PRIMUS_RDZV``. From there on it is
what ``train`` does for ``direct``, and the exit code is the same.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from primus.errors import LaunchError, PrimusError
from primus.launch.direct import Direct
from primus.plan.plan import Plan
from primus.runtime.job import Job
from primus.runtime.lock import Owner, await_attempt
from primus.runtime.supervise import Interrupts
from primus.runtime.training import RENDEZVOUS_SECONDS, Gang, is_complete, say, train

INDEX = "JOB_COMPLETION_INDEX"
RDZV = "PRIMUS_RDZV"


def job_of(directory: Path, variables: Mapping[str, str]) -> Job:
    """What this pod is to run. Raises LaunchError outside of a pod that ``primus-cli kubernetes`` rendered."""
    try:
        plan = Plan.load(directory / "plan.json")
        argv = json.loads((directory / "argv.json").read_text(encoding="utf-8"))
        rank = int(variables[INDEX])
    except (OSError, ValueError, KeyError) as error:
        raise LaunchError(
            f"this is not a pod of primus-cli kubernetes: {error}",
            where=str(directory),
            remedy="the image may hold another version of Primus than the one that made the plan",
        ) from error
    return Job(plan, Direct(nnodes=plan.topology.nnodes, node_rank=rank, rdzv=variables.get(RDZV, "")), tuple(argv))


def run(job: Job) -> int:
    """This pod's share of `job`. What a pod that died left of the run directory's lock is waited out."""

    def owner() -> Owner | None:
        if is_complete(job):
            return None
        return await_attempt(job.directory.path, job.place.nnodes, RENDEZVOUS_SECONDS, say)

    return train(job, Gang(lambda _: None, owner, Interrupts()))


def main() -> NoReturn:
    try:
        sys.exit(run(job_of(Path(sys.argv[1]), os.environ)))
    except PrimusError as error:
        from primus.config.report import show

        show(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
