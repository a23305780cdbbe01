"""Guessing what an unknown key was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from primus.config.foreign import FOREIGN
from primus.config.keys import keys


def closest(word: str, known: Iterable[str], cutoff: float = 0.65) -> str | None:
    """The member of `known` most like `word`, ignoring case and dashes; None when nothing is near."""
    by_form = {_form(item): item for item in known}
    form = _form(word)
    if form in by_form:
        return by_form[form]
    found = difflib.get_close_matches(form, by_form, n=1, cutoff=cutoff)
    return by_form[found[0]] if found else None


def _form(word: str) -> str:
    return word.lower().replace("-", "_")


def unknown_key(section: str, name: str) -> str:
    """The remedy for `name`, which `section` (dotted, empty at the top) does not know."""
    table = keys()
    here = [key.name for key in table.values() if key.section == section]
    near = closest(name, here, cutoff=0.78)
    if near:
        return f"did you mean {near}?"
    if "." in name and name in table:
        return f"dots only work on the command line; in a file nest it: {_nested(name)}"
    elsewhere = [key.dotted for key in table.values() if key.name == name and key.section != section]
    if elsewhere:
        return f"it belongs elsewhere: {' or '.join(elsewhere[:3])}"
    foreign = FOREIGN.get(_form(name))
    if foreign:
        return f"here it is called {foreign}" if foreign.partition(" ")[0] in table else foreign
    near = closest(name, here)
    if near:
        return f"did you mean {near}?"
    far = closest(name, [key.name for key in table.values()], cutoff=0.8)
    if far:
        places = [key.dotted for key in table.values() if key.name == far]
        return f"did you mean {' or '.join(places[:3])}?"
    return f"known here: {', '.join(here)}"


def _nested(dotted: str) -> str:
    parts = dotted.split(".")
    return ": {".join(parts) + ": ..." + "}" * (len(parts) - 1)
