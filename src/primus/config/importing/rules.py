"""What may become of a setting, and the words in which the table of keys says it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


class Put(NamedTuple):
    """Carried to portable keys: dotted key -> value. verbatim: the value is written as it was, with its ``${VAR}``."""

    values: dict[str, Any]
    note: str = ""
    verbatim: bool = False


class Native(NamedTuple):
    """Carried to the engine's own key, if the engine's schema has it. instead: why it is not carried otherwise."""

    key: str
    value: Any
    instead: str = ""


class Same(NamedTuple):
    """Carried without a key: this is how it is here anyway."""

    note: str


class Idle(NamedTuple):
    """Carried without a key: it has no effect there either."""

    note: str


class Drop(NamedTuple):
    """Not carried."""

    reason: str
    hint: str = ""


Outcome = Put | Native | Same | Idle | Drop


class Others:
    """The values of all settings of a file, for rules that depend on more than their own. Null counts as not set."""

    def __init__(
        self, values: Mapping[str, Any], *, preset: str = "", plain: bool = False, devices: int | None = None
    ) -> None:
        """preset: name of the model preset there; empty when the file spells the architecture out. plain: the file is
        the engine's own, with no presets of another system below it. devices: of a node, when that is known."""
        self._values = {name: value for name, value in values.items() if value is not None}
        self.preset = preset
        self.plain = plain
        self.devices = devices

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str, default: Any = None) -> Any:
        return self._values.get(name, default)

    def on(self, name: str) -> bool:
        """Whether a switch is set to true."""
        return truth(self.get(name)) is True

    def number(self, *names: str, default: float | None = None) -> float | None:
        """The first of `names` that is a number above zero."""
        found = (self.get(name) for name in names)
        return next((number for number in found if numeric(number) and number > 0), default)


Convert = Callable[[Any, Others], Outcome]


@dataclass(frozen=True)
class Rule:
    """One row of the table. text: the target or the reason, for people. flag: on a command line, no value follows."""

    text: str
    convert: Convert
    flag: bool = False


def truth(value: Any) -> bool | None:
    """The switch `value`, also where a configuration writes 0, 1 or text; None when it is none."""
    if value in (True, False):
        return bool(value)
    return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(str(value).lower())


def numeric(value: Any) -> bool:
    """Whether `value` is a finite number, which a truth value is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def same(value: Any, other: Any) -> bool:
    """Equal, with 1 and true, and texts in any case, alike."""
    if isinstance(other, bool):
        return truth(value) is other
    if isinstance(value, str) and isinstance(other, str):
        return value.lower() == other.lower()
    return bool(value == other)


# the words of the table


def to(target: str) -> Rule:
    """The same value under our name."""
    return Rule(target, lambda value, others: Put({target: value}, verbatim=True))


def switch(target: str, *, opposite: bool = False) -> Rule:
    """A switch under our name, or its opposite."""

    def convert(value: Any, others: Others) -> Outcome:
        state = truth(value)
        return Put({target: value if state is None else state is not opposite})

    return Rule(f"{target}{' (the opposite)' if opposite else ''}", convert, flag=True)


def choice(target: str, words: Mapping[str, Any], otherwise: str) -> Rule:
    """A word for which we may have another; `otherwise`: why the rest is not carried."""
    lowered = {word.lower(): ours for word, ours in words.items()}

    def convert(value: Any, others: Others) -> Outcome:
        word = str(value).lower()
        return Put({target: lowered[word]}) if word in lowered else Drop(otherwise)

    return Rule(target, convert)


def when(condition: Callable[[Others], bool], idle: str, rule: Rule) -> Rule:
    """`rule` where `condition` holds; elsewhere the setting has no effect there, because of `idle`."""

    def convert(value: Any, others: Others) -> Outcome:
        return rule.convert(value, others) if condition(others) else Idle(idle)

    return Rule(rule.text, convert, rule.flag)


def always(expected: Any, here: str, otherwise: str = "", *, flag: bool = False) -> Rule:
    """A setting with one value here: `expected` (or each of a tuple) agrees; `otherwise`: why other values cannot be
    carried, where `here` does not say it."""
    accepted = expected if isinstance(expected, tuple) else (expected,)

    def convert(value: Any, others: Others) -> Outcome:
        if any(same(value, one) for one in accepted):
            return Same(here)
        return Drop(otherwise or here)

    return Rule(f"always so here: {here}", convert, flag)


def off(reason: str, *, flag: bool = True) -> Rule:
    """Something that is not here: off agrees, on is not carried because of `reason`."""

    def convert(value: Any, others: Others) -> Outcome:
        return Same("off") if truth(value) is False else Drop(reason)

    return Rule(f"not carried: {reason}", convert, flag)


def no(reason: str, *, flag: bool = False) -> Rule:
    """Never carried."""
    return Rule(f"not carried: {reason}", lambda value, others: Drop(reason), flag)


def native(key: str, instead: str = "", *, flag: bool = False, opposite: bool = False) -> Rule:
    """The engine's own `key`, as our native section names it."""

    def convert(value: Any, others: Others) -> Outcome:
        state = truth(value) if flag else None
        return Native(key, value if state is None else state is not opposite, instead)

    return Rule(f"native {key}", convert, flag)


def by(text: str, convert: Convert, *, flag: bool = False) -> Rule:
    """A conversion of its own."""
    return Rule(text, convert, flag)


def on(name: str) -> Callable[[Others], bool]:
    """The condition that a switch is set to true."""
    return lambda others: others.on(name)


_NEGATION = re.compile(r"no_|disable_")


def lookup(rules: Mapping[str, Rule], name: str) -> tuple[Rule, bool] | None:
    """The rule for `name`, and whether the name denies it (``no_masked_softmax_fusion``). None: an unknown key."""
    if name in rules:
        return rules[name], False
    if (found := _NEGATION.match(name)) and name[found.end() :] in rules:
        rule = rules[name[found.end() :]]
        return (rule, True) if rule.flag else None
    for prefix, rule in rules.items():
        if prefix.endswith("*") and name.startswith(prefix[:-1]):
            return rule, False
    return None
