"""Some of the faults, each on one engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Cli
from faults import FAULTS, check, unbroken

CHOSEN = {
    "torchtitan": ("SIGSTOP of a rank", "SIGTERM of a rank"),
    "megatron": ("SIGKILL of rank 0",),
}


@pytest.mark.parametrize("backend", CHOSEN)
def test_the_curve_is_that_of_the_unbroken_run(cli: Cli, tmp_path: Path, backend: str) -> None:
    whole = unbroken(cli, tmp_path, backend)
    assert [step for step, _ in whole] == list(range(1, 61))
    for fault in FAULTS:
        if fault.name in CHOSEN[backend]:
            check(cli, tmp_path, backend, fault, whole)
