"""Rendering the place ``direct``: pure, so the commands are compared with ones kept in the repository."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from primus.errors import UsageError
from primus.launch.direct import Command, Direct, render

GOLDEN = Path(__file__).parent / "golden"


def command(place: Direct, **more: Any) -> Command:
    settings: dict[str, Any] = {
        "python": "/env/bin/python",
        "attempt": Path("/runs/a run/attempts/3"),
        "nproc": 4,
        "processes": "torchrun",
        "max_restarts": 2,
        "restart_window": 5400.0,
        "replica_groups": 1,
        "run_id": "a-run-3-0123",
        "env": {"NCCL_DEBUG": "WARN"},
        "import_path": "/checkout/src",
        "cores": 18,
        "inherited": {},
    }
    return render(place, **{**settings, **more})


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("one_node", Direct(nproc=4)),
        ("second_of_two_nodes", Direct(nproc=4, nnodes=2, node_rank=1, rdzv="node0:29400")),
        ("with_variables", Direct(env={"NCCL_DEBUG": "INFO", "FLAVOUR": 'it\'s\na "test"'})),
    ],
)
def test_golden(name: str, place: Direct) -> None:
    assert command(place).shell() + "\n" == (GOLDEN / f"{name}.sh").read_text()


def test_the_line_means_the_same_to_a_shell() -> None:
    rendered = command(Direct(env={"ODD": "a 'b'\n$HOME `x` \\"}), python="printf", attempt=Path("/a b/$c"))
    shown = rendered.shell().replace("printf", "printf '%s\\0'", 1)
    words = subprocess.run(["sh", "-c", shown], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    assert words == list(rendered.argv[1:])
    variable = rendered.shell().replace("printf", "sh -c 'printf %s \"$ODD\"' #", 1)
    assert subprocess.run(["sh", "-c", variable.split(" #")[0]], capture_output=True, text=True, check=True).stdout == (
        "a 'b'\n$HOME `x` \\"
    )


@pytest.mark.parametrize(
    ("cores", "nproc", "inherited", "env", "expected"),
    [
        (18, 4, {}, {}, "4"),
        (2, 8, {}, {}, "1"),
        (8, 2, {"OMP_NUM_THREADS": "3"}, {}, None),
        (8, 2, {}, {"OMP_NUM_THREADS": "5"}, "5"),
    ],
)
def test_threads_are_shared_out_unless_somebody_chose(
    cores: int, nproc: int, inherited: dict[str, str], env: dict[str, str], expected: str | None
) -> None:
    rendered = command(Direct(), cores=cores, nproc=nproc, inherited=inherited, env=env)
    assert rendered.env.get("OMP_NUM_THREADS") == expected


@pytest.mark.parametrize(
    ("experiment", "place", "expected"),
    [
        ({}, {}, "/checkout/src:/of/the/caller"),
        ({"PYTHONPATH": "/mine:/more"}, {}, "/checkout/src:/mine:/more:/of/the/caller"),
        ({}, {"PYTHONPATH": "/x"}, "/checkout/src:/x:/of/the/caller"),
        ({"PYTHONPATH": "/mine"}, {"PYTHONPATH": "/x"}, "/checkout/src:/x:/of/the/caller"),
        ({"PYTHONPATH": "/of/the/caller:/checkout/src:/mine"}, {}, "/checkout/src:/of/the/caller:/mine"),
        ({}, {"PYTHONPATH": ""}, "/checkout/src:/of/the/caller"),
    ],
)
def test_an_import_path_of_ones_own_stands_behind_ours(
    experiment: dict[str, str], place: dict[str, str], expected: str
) -> None:
    rendered = command(Direct(env=place), env=experiment, import_path="/checkout/src:/of/the/caller")
    assert rendered.env["PYTHONPATH"] == expected


def test_impossible_places_are_refused() -> None:
    with pytest.raises(UsageError, match="--node-rank 1 is not one of 1 nodes"):
        Direct(node_rank=1)
    with pytest.raises(UsageError, match="--rdzv HOST:PORT"):
        Direct(nnodes=2)
