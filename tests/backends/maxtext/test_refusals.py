"""What MaxText refuses reaches people as problems with keys of theirs, not as pages of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gang import Case, run_gang
from tiny import make, make_dataset

from primus.backends.maxtext.refusals import problems
from primus.backends.maxtext.schema import schema
from primus.errors import Problem
from primus.plan.plan import Plan
from primus.runtime.environments import provide


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    root = tmp_path_factory.mktemp("refused")
    return make(root / "run", make_dataset(root / "data"), backend="maxtext", maxtext={"num_vocab_tiling": 8})


def with_native(plan: Plan, **native: Any) -> Plan:
    """The plan as it would be, had neither the snapshot nor the translation stopped these."""
    return plan.model_copy(update={"native": plan.native | native})


def test_maxtext_itself(plan: Plan, tmp_path: Path) -> None:
    fields = with_native(plan, num_vocab_tiling="two", dtype="float7", gradient_accumulation_steps=0)
    cases = [
        Case("sentence", with_native(plan, num_vocab_tiling=7)),
        Case("fields", fields),
        Case("unknown", with_native(plan, remat_polici=1)),
    ]
    ran = run_gang(cases, 1, tmp_path, python=provide("jax"))
    said = {name: ran[name].errors[0].partition("primus.errors.PlanError: ")[2].strip() for name in ran}
    again = "(another value, or another backend)"
    assert sorted(said.pop("fields").splitlines()) == [
        "maxtext.num_vocab_tiling: MaxText does not take 'two' as its num_vocab_tiling: input should be a valid "
        "integer, unable to parse string as an integer (correct or remove it)",
        "precision: MaxText does not take 'float7' as its dtype: input should be 'bfloat16', 'float32', 'float16', "
        f"'float8_e4m3fn' or 'float8_e5m2' {again}",
        "train.global_batch_size: MaxText does not take 0 as its gradient_accumulation_steps: input should be "
        f"greater than 0 {again}",
    ]
    assert said == {
        "sentence": "maxtext: MaxText refuses it: Per device batch size times sequence length should be divisible by "
        "the number of vocab tiles. (look at the keys of your own: maxtext.num_vocab_tiling)",
        "unknown": "maxtext: MaxText has no key remat_polici (remove it)",
    }


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (
            "`dtype=x` is rejected with `num_vocab_tiling=7`: both are wrong",
            Problem(
                "maxtext.num_vocab_tiling",
                "MaxText refuses it: `dtype=x` is rejected with `num_vocab_tiling=7`: both are wrong",
                "dtype comes from precision",
            ),
        ),
        (
            "steps must be even",
            Problem("train.steps", "MaxText refuses it: steps must be even"),
        ),
        (
            "",
            Problem(
                "maxtext", "MaxText refuses it: ValueError", "look at the keys of your own: maxtext.num_vocab_tiling"
            ),
        ),
    ],
)
def test_a_sentence_is_put_where_the_key_is_that_it_names(plan: Plan, said: str, problem: Problem) -> None:
    assert problems(ValueError(said), plan, schema()) == [problem]


def test_a_sentence_that_lists_everything_is_cut(plan: Plan) -> None:
    (problem,) = problems(ValueError("no such choice " * 100), plan, schema())
    assert len(problem.message) < 450


def test_an_exit_is_what_led_to_it(plan: Plan) -> None:
    try:
        try:
            raise ValueError("steps must be even")
        except ValueError:
            raise SystemExit(2)  # noqa: B904 - as MaxText does
    except SystemExit as leaving:
        (problem,) = problems(leaving, plan, schema())
    assert problem.where == "train.steps"
