"""What becomes of one setting, before it meets the others: the table's word, and that for what no table lists."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from primus.config.importing import values
from primus.config.importing.rules import Drop, Idle, Native, Others, Outcome, Put, Rule, Same, lookup, same, truth
from primus.config.importing.settings import Setting
from primus.config.importing.table import ENVIRONMENT, HEAD, PASSED_ON
from primus.config.suggest import closest

if TYPE_CHECKING:
    from primus.backends.base import NativeKey

_VARIABLE = re.compile(r"(?:\w+\.)?([A-Z][A-Z0-9_]+)\Z")
_SECTIONS = {"megatron": ("transformer.", "ddp.", "optimizer."), "torchtitan": ("",), "maxtext": ("",)}
"""Where a native key may lie that the table does not know."""


class Engine(NamedTuple):
    """What is known of the engine. native: the keys of its own that our files may set; omitted: those that they may
    not, each with the reason and the engine's default."""

    backend: str
    table: Mapping[str, Rule]
    native: Mapping[str, NativeKey] = MappingProxyType({})
    omitted: Mapping[str, tuple[str, Any]] = MappingProxyType({})


def setting(given: Setting, others: Others, engine: Engine, *, guess: bool) -> Outcome:
    """The outcome for one of the engine's settings. guess: of an unknown key, say what may have been meant, which takes
    milliseconds."""
    table = engine.table
    rule, denied = lookup(table, given.name) or (None, False)
    variable = _VARIABLE.match(given.name)
    value = _plain(given, engine)
    if given.problem:
        never = rule is not None and rule.text.startswith("not carried")
        return rule.convert(None, others) if rule and never else Drop(given.problem)
    if variable:
        return _variable(variable[1], given)
    if rule is None:
        return _unknown(given, engine, guess=guess)
    if value in (None, {}):
        return Idle("null" if value is None else "empty")
    try:
        return rule.convert(truth(value) is False if denied else value, others)
    except ArithmeticError:
        return Drop("a number out of all bounds")


def _plain(given: Setting, engine: Engine) -> Any:
    value: Any = given.node.plain()
    return None if value == "None" and engine.backend == "maxtext" else value  # which writes null so


def _variable(name: str, given: Setting) -> Outcome:
    if name in ENVIRONMENT:
        return ENVIRONMENT[name].convert(given.node.plain(), Others({}))
    if name.startswith(PASSED_ON):
        return Put({f"env.{name}": given.node.text}, verbatim=True)
    return Drop("a variable of the scripts around it", f"if the ranks read it, set env.{name}")


def _unknown(given: Setting, engine: Engine, *, guess: bool) -> Outcome:
    value = _plain(given, engine)
    for section in _SECTIONS[engine.backend]:
        if key := engine.native.get(f"{section}{given.name}"):
            default = not key.portable and same(value, key.default)
            return Same("the engine's default") if default else Native(f"{section}{given.name}", value)
    if given.name in engine.omitted:
        reason, default = engine.omitted[given.name]
        return Same("the engine's default") if same(value, default) else Drop(reason)
    known = [*(name for name in engine.table if "*" not in name), *engine.native] if guess else []
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
        found = values.preset(str(value), Others({}))
        return found._replace(note=f"{given.raw} is this now") if isinstance(found, Put) and given.raw else found
    if given.name in HEAD:
        return HEAD[given.name].convert(value, Others({}))
    near = closest(given.name, [*HEAD, "modules"])
    return Drop("unknown key", f"did you mean {near}?" if near else "")
