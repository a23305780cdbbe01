"""A shell script, or a line of one, that calls MaxText: its ``key=value`` arguments and exported variables as settings.

What is read of the shell is what ``arguments`` reads. Without a command that runs MaxText all ``key=value`` words are
arguments, as in a file of them; else those of that command, and those in arrays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from primus.config.document import Node, parse
from primus.config.importing.arguments import ASSIGNMENT, COMPILER, Scanner, Word, exported, leading
from primus.config.importing.settings import Setting
from primus.config.source import Source
from primus.errors import ConfigError

_PAIR = re.compile(r"(?:^|\s)[a-z][a-z0-9_]*=\S")
_KEY = re.compile(r"[a-z][a-z0-9_]*=")
_FILE = re.compile(r"\S+\.ya?ml\Z")
_OVERRIDE = "M_"
"""MaxText takes ``M_STEPS`` of the environment as ``steps``."""


def holds_pairs(text: str) -> bool:
    """Whether `text` holds words such as ``steps=10``."""
    return _PAIR.search(text) is not None


def settings(text: str, source: Source, environment: Mapping[str, str], known: Callable[[str], bool]) -> list[Setting]:
    """Every argument and exported variable of `text`, in order; empty when none is `known` to MaxText. Raises
    ConfigError for a quote that is not closed."""
    scanner = Scanner(text, source, environment)
    commands = list(scanner.commands())
    runs = any(_runs(words) for words, _ in commands)
    found: list[Setting] = []
    some = False
    for words, array in commands:
        found += [_override(item, known) for item in exported(words, scanner)]
        if _runs(words) or array or (not runs and leading(words) == len(words)):
            pairs = list(_pairs(words, scanner))
            if _runs(words) or any(known(item.name) for item in pairs):
                found += pairs
                some = some or any(known(item.name) for item in pairs)
    return found if some else []


def _runs(words: list[Word]) -> bool:
    """Whether a command runs MaxText: it names it, or a file that the arguments come on top of."""
    program = words[leading(words) :]
    return any("maxtext" in word.text.lower() or _FILE.match(word.text) for word in program if word.kind == "word")


def _pairs(words: list[Word], scanner: Scanner) -> Iterator[Setting]:
    begin = leading(words) if _runs(words) or (words and words[0].text == "export") else 0
    for word in words[begin:]:
        if match := _KEY.match(word.text):
            name = match[0].rstrip("=")
            setting = scanner.setting(name, word, [word._replace(text=word.text[match.end() :])])
            yield setting._replace(node=_value(setting.node))
        elif _FILE.match(word.text) and ASSIGNMENT.match(word.text) is None:
            file = word._replace(text=word.text.rpartition("/")[2], unknown="")
            yield scanner.setting("base_config", word, [file])._replace(written=word.text)


def _value(node: Node) -> Node:
    """Lists and maps are YAML."""
    if isinstance(node.value, str) and node.value[:1] in ("[", "{"):
        try:
            parsed = parse(node.value, Source("file", node.mark.source.place, node.mark.source.place))
        except ConfigError:
            return node
        return parsed._replace(mark=node.mark) if parsed else node
    return node


def _override(setting: Setting, known: Callable[[str], bool]) -> Setting:
    name = setting.name.removeprefix(_OVERRIDE).lower()
    if setting.name.startswith(_OVERRIDE) and known(name):
        return setting._replace(name=name, written=setting.name)
    if setting.name in COMPILER and isinstance(setting.node.value, str):
        flags = " ".join(setting.node.value.split())
        return setting._replace(node=setting.node._replace(value=flags, text=flags))
    return setting
