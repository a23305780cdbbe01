"""What MaxText says against its configuration, in the words and with the keys of the experiment. Light: no jax."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from primus.backends.base import NativeSchema
from primus.errors import Problem
from primus.plan.plan import Plan

LONGEST = 400
"""Characters of a sentence of MaxText's that are shown; some of them list all of its 865 keys."""


def problems(error: BaseException, plan: Plan, schema: NativeSchema) -> list[Problem]:
    """One Problem for each thing that MaxText refused in the configuration of `plan` with `error`.

    error: pydantic's ValidationError, another exception with a sentence, or the SystemExit that MaxText makes of either
    outside of tests. Where: the portable key that set what is wrong, or ``maxtext.KEY``.
    """
    if isinstance(error, SystemExit) and error.__context__ is not None:
        error = error.__context__
    told = Telling(plan.experiment.native.get("maxtext", {}), plan.native, schema)
    if isinstance(error, ValidationError):
        return [told.of_entry(entry) for entry in error.errors(include_url=False, include_context=False)]
    return [told.of_sentence(str(error) or type(error).__name__)]


@dataclass(frozen=True)
class Telling:
    """own: what the experiment has under ``maxtext:``. given: all that MaxText was given."""

    own: dict[str, Any]
    given: dict[str, Any]
    schema: NativeSchema

    def of_entry(self, entry: Any) -> Problem:
        """One of pydantic's errors: of a field, or of MaxText's own validators, which see all fields at once."""
        said = entry["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        if not entry["loc"]:
            return self.of_sentence(said)
        key = str(entry["loc"][0])
        inside = "".join(f"[{part}]" for part in entry["loc"][1:])
        message = f"MaxText does not take {entry['input']!r} as its {key}{inside}"
        return Problem(self.place(key), _short(f"{message}: {said[:1].lower()}{said[1:]}"), self._remedy(key))

    def of_sentence(self, said: str) -> Problem:
        """A sentence that may name keys: the experiment's own come first, as they are the likeliest to be wrong."""
        unknown = re.match(r"'(\w+)' not in '", said)
        if unknown:
            return Problem(self.place(unknown[1]), f"MaxText has no key {unknown[1]}", "remove it")
        named = [name for name in dict.fromkeys(re.findall(r"\w+", said)) if name in self.given or name in self.own]
        named.sort(key=lambda name: name not in self.own)
        message = f"MaxText refuses it: {_short(said)}"
        if not named:
            mine = ", ".join(f"maxtext.{name}" for name in self.own)
            return Problem("maxtext", message, f"look at the keys of your own: {mine}" if mine else "")
        first, *others = named
        return Problem(self.place(first), message, "; ".join(self._comes_from(others)))

    def place(self, name: str) -> str:
        """The key of the experiment that sets MaxText's `name`."""
        if name in self.own:
            return f"maxtext.{name}"
        key = self.schema.keys.get(name)
        return key.portable if key is not None and key.portable else "maxtext"

    def _remedy(self, name: str) -> str:
        return "correct or remove it" if name in self.own else "another value, or another backend"

    def _comes_from(self, names: list[str]) -> Iterator[str]:
        for name in names:
            place = self.place(name)
            if place not in ("maxtext", f"maxtext.{name}"):
                yield f"{name} comes from {place}"


def _short(text: str) -> str:
    return textwrap.shorten(text, LONGEST, placeholder=" ...")
