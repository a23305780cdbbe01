"""What becomes of one setting, before it meets the others: the table's word, and that for what no table lists."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from primus.config.importing import names
from primus.config.importing.rules import Drop, Idle, Native, Others, Outcome, Put, Rule, lookup, truth
from primus.config.importing.settings import Setting
from primus.config.importing.table import ENVIRONMENT, HEAD, PASSED_ON
from primus.config.suggest import closest

_VARIABLE = re.compile(r"(?:\w+\.)?([A-Z][A-Z0-9_]+)\Z")
_SECTIONS = {"megatron": ("transformer.", "ddp.", "optimizer."), "torchtitan": ("",)}
"""Where a native key may lie that the table does not know."""


def setting(
    given: Setting, others: Others, table: Mapping[str, Rule], backend: str, native: Collection[str], *, guess: bool
) -> Outcome:
    """The outcome for one of the engine's settings. native: the native keys of `backend`. guess: of an unknown key, say
    what may have been meant, which takes milliseconds."""
    rule, denied = lookup(table, given.name) or (None, False)
    variable = _VARIABLE.match(given.name)
    value = given.node.plain()
    if given.problem:
        never = rule is not None and rule.text.startswith("not carried")
        return rule.convert(None, others) if rule and never else Drop(given.problem)
    if variable:
        return _variable(variable[1], given)
    if rule is None:
        return _unknown(given, table, backend, native, guess=guess)
    if value in (None, {}):
        return Idle("null" if value is None else "empty")
    try:
        return rule.convert(truth(value) is False if denied else value, others)
    except ArithmeticError:
        return Drop("a number out of all bounds")


def _variable(name: str, given: Setting) -> Outcome:
    if name in ENVIRONMENT:
        return ENVIRONMENT[name].convert(given.node.plain(), Others({}))
    if name.startswith(PASSED_ON):
        return Put({f"env.{name}": given.node.text}, verbatim=True)
    return Drop("a variable of the scripts around it", f"if the ranks read it, set env.{name}")


def _unknown(
    given: Setting, table: Mapping[str, Rule], backend: str, native: Collection[str], *, guess: bool
) -> Outcome:
    for section in _SECTIONS[backend]:
        if f"{section}{given.name}" in native:
            return Native(f"{section}{given.name}", given.node.plain())
    known = [*(name for name in table if "*" not in name), *native] if guess else []
    near = closest(given.name, known, cutoff=0.75)
    flag = given.written.startswith("--")
    near = f"--{near.replace('_', '-')}" if near and flag else near
    return Drop(f"unknown {'flag' if flag else 'key'}", f"did you mean {near}?" if near else "")


def head(given: Setting, backend: str) -> Outcome:
    """The outcome for a setting beside the engine's own."""
    value: Any = given.node.plain()
    variable = _VARIABLE.match(given.name)
    if given.problem or value is None:
        return Drop(given.problem) if given.problem else Idle("null")
    if variable:
        return _variable(variable[1], given)
    if given.name == "framework":
        return Put({"backend": backend})
    if given.name == "model":
        return _model(given, str(value))
    if given.name in HEAD:
        return HEAD[given.name].convert(value, Others({}))
    near = closest(given.name, [*HEAD, "modules"])
    return Drop("unknown key", f"did you mean {near}?" if near else "")


def _model(given: Setting, value: str) -> Outcome:
    found = names.model(value)
    if found.preset is None:
        return Drop(f"there is no preset of '{value}' here", f"the nearest is {found.near}" if found.near else "")
    note = f"{given.raw} is this now" if given.raw else ""
    return Put({"extends": found.preset, **({"precision": "fp8"} if found.fp8 else {})}, note)
