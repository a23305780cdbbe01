"""What holds for any configuration, tried on many."""

from __future__ import annotations

import itertools
import json
import string
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from primus.config import emit
from primus.config.document import Entry, Node, parse
from primus.config.experiment import Experiment, Section, Words
from primus.config.keys import Key, alternatives, keys
from primus.config.load import load
from primus.config.merge import merge
from primus.config.overrides import parse_overrides
from primus.config.scalars import LARGEST_INTEGER
from primus.config.show import aligned, as_yaml, values
from primus.config.source import Mark, Source, split_lines
from primus.errors import ConfigError, PrimusError, Problem

SOURCE = Source("file", "f.yaml", "f.yaml")
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

LINES = itertools.count(1)
"""Each node has a place of its own."""

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-LARGEST_INTEGER, LARGEST_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff\ufffe\uffff\u2028\u2029\x85"))
)
names = st.text(string.ascii_lowercase, min_size=1, max_size=3)
trees = st.dictionaries(
    names,
    st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
    ),
    max_size=4,
)


def node(value: Any) -> Node:
    mark = Mark(SOURCE, next(LINES))
    if isinstance(value, dict):
        return Node({key: Entry(mark, node(item)) for key, item in value.items()}, mark)
    if isinstance(value, list):
        return Node([node(item) for item in value], mark)
    return Node(value, mark, text=str(value))


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {path: leaf for key, item in value.items() for path, leaf in leaves(item, f"{prefix}.{key}").items()}
    return {prefix: value}


@QUICK
@given(trees, trees, trees)
@example({"a": {}}, {"a": {}}, {"a": None})
@example({"a": {"x": 1}}, {"a": {"x": 2, "y": 3}}, {"a": None})
@example({"a": {"x": 1}}, {"a": None}, {"a": {}})
def test_merging_is_associative(first: Any, second: Any, third: Any) -> None:
    a, b, c = node(first), node(second), node(third)
    left, right = merge(merge(a, b), c), merge(a, merge(b, c))
    assert left.plain() == right.plain()
    assert _histories(left) == _histories(right)


def _histories(tree: Node) -> Any:
    if isinstance(tree.value, dict):
        return {key: _histories(entry.node) for key, entry in tree.value.items()}
    chain: list[Any] = []
    at: Node | None = tree
    while at is not None:
        chain.append(at.plain())
        at = at.replaced
    return chain


@QUICK
@given(trees, trees)
def test_the_upper_layer_keeps_all_it_says_and_nothing_is_invented(lower: Any, upper: Any) -> None:
    merged, said, below = leaves(merge(node(lower), node(upper)).plain()), leaves(upper), leaves(lower)
    for path, leaf in said.items():
        assert leaf == {} or merged[path] == leaf
    assert merged.keys() <= said.keys() | below.keys()


@QUICK
@given(trees)
def test_merging_with_itself_or_nothing_changes_nothing(tree: Any) -> None:
    one = node(tree)
    assert merge(one, one) == one
    assert merge(node(tree), node(tree)).plain() == tree
    assert merge(node({}), node(tree)).plain() == merge(node(tree), node({})).plain() == tree


@settings(max_examples=300, deadline=None)
@given(trees)
def test_what_is_emitted_reads_back_the_same(tree: Any) -> None:
    text = "\n".join(f"{emit.text(key)}: {emit.flow(value)}" for key, value in tree.items())
    found = parse(text, Source("file", "f", "f", split_lines(text)))
    expected = json.loads(json.dumps(tree).replace("${", "$${"))
    assert (found.plain() if found else {}) == expected
    assert json.dumps(found.plain() if found else {}) == json.dumps(expected)  # 1 is not 1.0, nor true


@settings(max_examples=200, deadline=None)
@given(st.lists(names, min_size=1, max_size=4), scalars | st.lists(scalars, max_size=3))
def test_an_override_says_what_a_nested_file_says(path: list[str], value: Any) -> None:
    dotted = ".".join(path)
    tree, problems = parse_overrides([f"{dotted}={emit.flow(value)}"])
    assert not problems
    assert tree is not None
    expected: Any = json.loads(json.dumps(value).replace("${", "$${"))
    for part in reversed(path):
        expected = {part: expected}
    assert tree.plain() == expected


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    try:
        parse(text, Source("file", "f", "f", split_lines(text)))
        problems: tuple[Problem, ...] = ()
    except ConfigError as error:
        problems = error.problems
    assert all(item.where.startswith("f:") and item.message for item in problems)


def refusal(name: str, overrides: list[str]) -> PrimusError | None:
    """What loading ends in, when it does not succeed."""
    try:
        load(name, overrides, {})
    except PrimusError as error:
        return error
    return None


@QUICK
@given(override=st.text(max_size=30))
def test_any_override_is_taken_or_refused_politely(override: str, minimal: str, write: Any) -> None:
    error = refusal(write(minimal), [override])
    assert error is None or (error.exit_code == 2 and str(error))


def example(key: Key) -> Any:
    """A value that `key` takes, other than its default where it can be."""
    kind, metadata = alternatives(key.field.annotation)[-1]
    durations = dict.fromkeys(("hang_timeout", "start_timeout", "restart_window"), "7m")
    worded = {"name": "x1"} | {f"resilience.{key}": value for key, value in durations.items()}
    if key.dotted in worded or any(isinstance(item, Words) for item in metadata):
        return worded[key.dotted]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        default = key.field.get_default(call_default_factory=True, validated_data={})
        return next((word for word in arguments if word != default), arguments[0])
    if isinstance(kind, type) and issubclass(kind, Section):
        inside = [inner for inner in keys().values() if inner.section == key.dotted and inner.field.is_required()]
        return {inner.name: example(inner) for inner in inside}
    simple = {int: 2, float: 0.5, bool: True, str: "text", list: ["a"], tuple: [0.25, 0.5], dict: {}}
    return simple[origin or kind]


ODD = {
    "profile.steps": [3, 4],
    "profile.ranks": [2],
    "env": {"A": "b"},
    "hardware.peak_tflops": {"bf16": 5.0},
    "backend": "torchtitan",
    "resilience.spike_factor": 3.0,
    "model.init": "native",
}
LEAVES = [key for key in keys().values() if not key.subsection]


@pytest.mark.parametrize("dotted", [key.dotted for key in LEAVES])
def test_every_key_of_the_schema_can_be_reached(dotted: str, minimal: str, write: Any) -> None:
    """Set by override, alone; it is either taken, or refused by a check that names it, never as unknown."""
    key = keys()[dotted]
    value = ODD.get(dotted, example(key))
    extra = ["profile.steps=[1, 2]"] if dotted == "profile.ranks" else []
    if key.section == "model.rope_scaling":
        extra = ["model.rope_scaling={rope_type: yarn, factor: 2, original_max_position_embeddings: 64}"]
    name = write(minimal)
    override = f"{dotted}={emit.flow(value)}"
    error = refusal(name, [*extra, override])
    if error is not None:
        assert all("unknown" not in item.message and "must be" not in item.message for item in error.problems)
        assert any(key.name in str(item) for item in error.problems)
        return
    resolved = load(name, [*extra, override], {})
    found = values(resolved)
    got = {path: item for path, item in found.items() if path == dotted or path.startswith(f"{dotted}.")}
    assert list(got.values()) == [value] or got == leaves(value, dotted)
    assert {str(resolved.origins[path]) for path in got} == {"override"}


def misspellings() -> list[tuple[str, str]]:
    """Each key with a letter left out, doubled, or two swapped."""
    found = []
    for key in keys().values():
        if len(key.name) < 3:
            continue
        middle = len(key.name) // 2
        for wrong in (
            key.name[:middle] + key.name[middle + 1 :],
            key.name[: middle + 1] + key.name[middle:],
            key.name[: middle - 1] + key.name[middle] + key.name[middle - 1] + key.name[middle + 1 :],
        ):
            siblings = {other.name for other in keys().values() if other.section == key.section}
            if wrong not in siblings:
                found.append((f"{key.section}.{wrong}".lstrip("."), key.name))
    return found


def test_any_single_misspelt_key_is_an_error_that_names_it_and_most_lead_back(minimal: str, write: Any) -> None:
    name = write(minimal)
    cases = misspellings()
    led = 0
    for batch in _batches(cases, 40):
        with pytest.raises(ConfigError) as caught:
            load(name, [f"{wrong}=1" for wrong, _ in batch], {})
        for wrong, right in batch:
            word = wrong.rpartition(".")[2]
            about = [item for item in caught.value.problems if f"unknown key '{word}'" in item.message]
            assert about, wrong
            led += any(item.remedy in (f"did you mean {right}?", f"it belongs elsewhere: {right}") for item in about)
    assert led >= 0.95 * len(cases), f"{led} of {len(cases)}"


def _batches(items: list[tuple[str, str]], size: int) -> list[list[tuple[str, str]]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["checkpoint.async=false", "env={A: '1', 'B.C': 'x: y # $${Z'}", "profile.steps=[1, 2]"],
        ["data.train=[a, {path: 'b, c', weight: 2}]", "data.validation=1e-9", "train.seed=9007199254740993"],
        ["hardware.peak_tflops={bf16: 1e3}", "name='1e5'", "data.tokenizer='yes'", "torchtitan.training.gc_freq=7"],
        ["model.rope_scaling={rope_type: yarn, factor: 2, original_max_position_embeddings: 64}", "eval.steps=20"],
    ],
)
@pytest.mark.parametrize("everything", [False, True])
def test_what_show_prints_is_the_same_experiment(
    overrides: list[str], everything: bool, minimal: str, write: Any
) -> None:
    first = load(write(minimal), overrides, {})
    again = load(write("\n".join(line for line, _ in as_yaml(first, everything=everything)), "shown.yaml"), (), {})
    assert again.experiment == first.experiment
    assert Experiment.model_validate_json(first.experiment.model_dump_json(by_alias=True)) == first.experiment


@pytest.mark.parametrize("lengths", [[10], [61], [10, 59, 60, 61, 80], [60, 200], [61, 61]])
def test_what_show_prints_keeps_two_spaces_before_a_comment(lengths: list[int]) -> None:
    lines = list(aligned([("x" * length, "override") for length in lengths]))
    assert all(text.endswith("  ") and comment == "# override" for text, comment in lines)
    assert len({len(text) for text, _ in lines if len(text) <= 62}) <= 1
