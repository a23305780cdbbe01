"""Guessing what an unknown key was meant to be."""

from __future__ import annotations

from collections.abc import Iterable

from primus.config.keys import keys

LONGEST = 100
"""Nobody meant a key longer than this, and comparing it would take long."""


def closest(word: str, known: Iterable[str], cutoff: float = 0.65) -> str | None:
    """The member of `known` most like `word`, ignoring case and dashes; None when nothing is near."""
    import difflib

    if len(word) > LONGEST:
        return None
    by_form = {_form(item): item for item in known}
    form = _form(word)
    if form in by_form:
        return by_form[form]
    found = difflib.get_close_matches(form, by_form, n=1, cutoff=cutoff)
    return by_form[found[0]] if found else None


def _form(word: str) -> str:
    return word.lower().replace("-", "_")


def unknown_key(section: str, name: str, backends: Iterable[str] = ()) -> str:
    """The remedy for `name`, which `section` (dotted, empty at the top) does not know. Tried in order: a slip of the
    keyboard, a key of another section, another system's name for it, something less near. backends: their names may
    stand at the top, too; finding them takes too long for every guess."""
    table = keys()
    here = [key.name for key in table.values() if key.section == section]
    if not section:
        here += ["extends", *backends]
    if "." in name and name in table:
        return f"dots are for the command line; in a file write {_nested(name)}"
    return (
        _meant(closest(name, here, cutoff=0.78))
        or _elsewhere(section, name)
        or _foreign(name)
        or _meant(closest(name, here))
        or _meant(" or ".join(_dotted(closest(name, [key.name for key in table.values()], cutoff=0.8))))
        or f"known here: {', '.join(here)}"
    )


def _meant(key: str | None) -> str:
    return f"did you mean {key}?" if key else ""


def _dotted(name: str | None) -> list[str]:
    """Up to three keys of the schema called `name`."""
    return [key.dotted for key in keys().values() if key.name == name][:3]


def _elsewhere(section: str, name: str) -> str:
    places = [dotted for dotted in _dotted(name) if dotted.rpartition(".")[0] != section]
    return f"it belongs elsewhere: {' or '.join(places)}" if places else ""


def _foreign(name: str) -> str:
    from primus.config.foreign import FOREIGN

    said = FOREIGN.get(_form(name), "")
    is_key = said.replace(",", " ").replace(";", " ").partition(" ")[0] in keys()
    return f"here it is called {said}" if is_key else said


def _nested(dotted: str) -> str:
    parts = dotted.split(".")
    return ": {".join(parts) + ": ..." + "}" * (len(parts) - 1)
