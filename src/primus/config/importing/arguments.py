"""A shell script, or a line of one, that calls Megatron: its ``--flags`` and exported variables as settings.

Not a shell: quotes, escapes, comments, continued lines, arrays, and variables that the script itself sets are
understood; what a command or arithmetic would give, and branches, are not. A flag counts wherever it stands, also in
``ARGS="..."`` and ``ARGS=(...)``.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile
from typing import Literal, NamedTuple

from primus.config.document import Node
from primus.config.importing.rules import Rule
from primus.config.importing.settings import Setting
from primus.config.scalars import Scalar, is_text, resolve
from primus.config.source import Mark, Source
from primus.errors import ConfigError

ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")
_FLAG = re.compile(r"--[A-Za-z]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BRACED = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<all>\[[@*]\])?(?::?[-=](?P<default>.*))?\Z", re.DOTALL)
_HOLDS_FLAGS = re.compile(r"(?:^|\s)--[A-Za-z]")
COMPILER = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
"""Variables whose flags are not the engine's."""
DEEPEST = 20
"""Nested defaults, ``${A:-${B:-c}}``."""


class Word(NamedTuple):
    """One word of a command. unknown: a reference in it that has no value here, as written."""

    text: str
    offset: int
    unknown: str = ""
    quoted: bool = False
    kind: Literal["word", "end", "spliced"] = "word"
    """``end``: of a command. ``spliced``: here stands a variable whose flags were found where it was set."""


def holds_flags(text: str) -> bool:
    """Whether `text` holds a flag such as ``--num-layers``."""
    return _HOLDS_FLAGS.search(text) is not None


def settings(
    text: str, source: Source, environment: Mapping[str, str], rule: Callable[[str], Rule | None]
) -> list[Setting]:
    """Every flag and exported variable of `text`, in order. rule: what the table knows of a key, which says whether
    values follow its flag. Raises ConfigError for a quote that is not closed."""
    scanner = Scanner(text, source, environment)
    return [setting for words, _ in scanner.commands() for setting in _command(words, scanner, rule)]


def exported(words: list[Word], scanner: Scanner) -> Iterator[Setting]:
    """The variables that one command exports, or that it has before it."""
    exports = bool(words) and words[0].text == "export"
    position = leading(words)
    for word in words[int(exports) : position]:  # without `export` they are variables of the command behind them
        if (exports or position < len(words)) and (match := ASSIGNMENT.match(word.text)):
            yield scanner.setting(match[0].rstrip("+="), word, [word._replace(text=word.text[match.end() :])])


def leading(words: list[Word]) -> int:
    """How many words the exports and assignments before a command are."""
    position = int(bool(words) and words[0].text == "export")
    while position < len(words) and ASSIGNMENT.match(words[position].text):
        position += 1
    return position


def _command(words: list[Word], scanner: Scanner, rule: Callable[[str], Rule | None]) -> Iterator[Setting]:
    """The settings of one command, or of a variable that holds flags."""
    yield from exported(words, scanner)
    position = leading(words)
    engine = any(_FLAG.match(word.text) or word.kind == "spliced" for word in words)
    while position < len(words):
        word = words[position]
        position += 1
        if not word.quoted and _FLAG.match(word.text):
            written, equals, value = word.text.partition("=")
            name = written[2:].replace("-", "_")
            known = rule(name)
            values = [word._replace(text=value)] if equals else list(takewhile(_is_value, words[position:]))
            if known is not None and known.flag and not equals:
                values = values[: int(bool(values) and values[0].text.lower() in ("true", "false"))]
            position += 0 if equals else len(values)
            setting = scanner.setting(name, word, values, flag=known.flag if known else not values)
            yield setting._replace(written=written)
        elif engine and word.unknown and not word.text:  # it may have held flags
            yield scanner.setting(word.unknown, word, [word])


def _is_value(word: Word) -> bool:
    """Whether a flag before the word may take it: no flag, and not the program that a launcher starts."""
    return word.kind == "word" and (word.quoted or not (_FLAG.match(word.text) or word.text.endswith(".py")))


class Scanner:
    """Splits text into words as a shell would. ``variables``: what the script has set so far; None for arrays and for
    what holds flags, which were found where it was set."""

    def __init__(self, text: str, source: Source, environment: Mapping[str, str]) -> None:
        self.text = text
        self.source = source
        self.environment = environment
        self.variables: dict[str, str | None] = {}
        self.nested = 0
        self.spliced = False  # whether the word read last refers to flags that were found already
        self.starts = [0, *(match.end() for match in re.finditer(r"\r\n|[\n\r\x85\u2028\u2029]", text))]

    def mark(self, offset: int) -> Mark:
        line = bisect_right(self.starts, offset)
        return Mark(self.source, line, offset - self.starts[line - 1] + 1)

    def setting(self, name: str, word: Word, values: list[Word], *, flag: bool = False) -> Setting:
        mark = self.mark(word.offset)
        unknown = next((value.unknown for value in values if value.unknown), "")
        nodes = [Node(_scalar(value), self.mark(value.offset), text=value.text or value.unknown) for value in values]
        node = nodes[0] if len(nodes) == 1 else Node(nodes, nodes[0].mark) if nodes else Node(True, mark, text="true")
        lacking = "" if nodes or flag else "no value follows"
        problem = f"{unknown} has no value here" if unknown else lacking
        return Setting(name, mark, node, problem)

    def commands(self) -> Iterator[tuple[list[Word], bool]]:
        """The words of each command, and whether they are the members of an array."""
        start, words = 0, list(self.words(0, len(self.text)))
        for end, word in enumerate([*words, Word("", len(self.text), kind="end")]):
            if word.kind == "end":
                before = self.text[words[start - 1].offset : words[start - 1].offset + 1] if start else ""
                yield words[start:end], before == "("
                start = end + 1

    def words(self, start: int, stop: int, *, inside: bool = False) -> Iterator[Word]:
        """The words between two offsets. inside: within quotes, where the end of a line ends no command."""
        position, depth = start, 0
        while position < stop:
            char = self.text[position]
            if char == "\\" and self.text[position + 1 : position + 2] in ("\n", "\r"):
                position += 3 if self.text[position + 1 : position + 3] == "\r\n" else 2
            elif char == "#":
                end = self.text.find("\n", position, stop)
                position = stop if end < 0 else end
            elif char in "()":
                depth = max(0, depth + (1 if char == "(" else -1))
                yield Word("", position, kind="end")
                position += 1
            elif char in ";&|<>\n":  # behind < and > stands a file
                if not (char == "\n" and (inside or depth)):
                    yield Word("", position, kind="end")
                position += 1
            elif char.isspace():
                position += 1
            else:
                word, position, body = self.word(position, stop)
                if not (word.text.isdigit() and self.text[position : position + 1] in ("<", ">")):
                    yield from self.meant(word, position, body)

    def meant(self, word: Word, position: int, body: tuple[int, int] | None) -> Iterator[Word]:
        """The word itself, or the flags inside it. Variables are remembered."""
        assigned = ASSIGNMENT.match(word.text) if self.text[word.offset] != "$" else None
        if assigned:
            name, value = assigned[0].rstrip("+="), word.text[assigned.end() :]
            if name in COMPILER:
                yield word
                return
            if self.text[position : position + 1] == "(" and not value:
                self.variables[name] = None
                return
            if not holds_flags(value):
                self.variables[name] = None if self.spliced else value
                if word.unknown:
                    del self.variables[name]
                yield word
                return
            self.variables[name] = None
            word = word._replace(text=value, offset=word.offset + assigned.end())
        several = len(word.text.split()) > 1
        if holds_flags(word.text) and (assigned or (several and body)):
            end = Word("", word.offset, kind="end")
            yield from (end, *(self.words(*body, inside=True) if body else [word]), end)
        elif self.spliced:
            yield word._replace(kind="spliced")
        elif several and not word.quoted:
            yield from (word._replace(text=part) for part in word.text.split())
        elif word.text or word.quoted or word.unknown:
            yield word

    def word(self, position: int, stop: int) -> tuple[Word, int, tuple[int, int] | None]:
        """The word at `position`, where it ends, and the inside of its last quotes."""
        begin, text, unknown, quoted = position, "", "", False
        self.spliced = False
        body: tuple[int, int] | None = None
        while position < stop:
            char = self.text[position]
            if char.isspace() or char in ";&|()<>":
                break
            if char == "\\":
                if self.text[position + 1 : position + 2] not in ("\n", "\r"):
                    text += self.text[position + 1 : position + 2]
                elif text:
                    break
                position += 2
            elif char == "'":
                end = self.closing(position, stop)
                text += self.text[position + 1 : end]
                body, quoted, position = (position + 1, end), True, end + 1
            elif char == '"':
                end = self.closing(position, stop)
                inner, missing = self.expand(position + 1, end)
                text, unknown = text + inner, unknown or missing
                body, quoted, position = (position + 1, end), True, end + 1
            elif char in "$`":
                inner, missing, position = self.reference(position, stop)
                text, unknown = text + inner, unknown or missing
            else:
                text, position = text + char, position + 1
        return Word(text, begin, unknown, quoted and not _FLAG.match(text)), position, body

    def closing(self, position: int, stop: int) -> int:
        """The offset of the quote that closes the one at `position`."""
        quote, at = self.text[position], position + 1
        while at < stop and self.text[at] != quote:
            at += 2 if self.text[at] == "\\" and quote == '"' else 1
        if at >= stop:
            raise ConfigError(
                problems=[self.mark(position).problem("the quoted text is not closed", "add the missing quote")]
            )
        return at

    def expand(self, start: int, stop: int) -> tuple[str, str]:
        """The text between double quotes, and a reference in it without a value."""
        text, unknown, position = "", "", start
        while position < stop:
            char = self.text[position]
            if char == "\\" and position + 1 < stop:
                following = self.text[position + 1]
                text += "" if following == "\n" else following if following in '"\\$`' else char + following
                position += 2
            elif char in "$`":
                inner, missing, position = self.reference(position, stop)
                text, unknown = text + inner, unknown or missing
            else:
                text, position = text + char, position + 1
        return text, unknown

    def reference(self, position: int, stop: int) -> tuple[str, str, int]:
        """The value of what ``$`` or a backtick begins, else what was written if it has none here; where it ends."""
        if self.text[position] == "`":
            end = self.text.find("`", position + 1, stop) + 1 or stop
            return "", self.text[position:end], end
        if self.text.startswith("$(", position):
            end = self._closed(position + 1, stop, "()")
            return "", self.text[position:end], end
        if self.text.startswith("${", position):
            end = self._closed(position + 1, stop, "{}")
            match = _BRACED.match(self.text, position + 2, end - 1)
            if match is None:
                return "", self.text[position:end], end
            default = None
            if match["default"] is not None and self.nested < DEEPEST:
                self.nested += 1
                default = self.expand(match.start("default"), match.end("default"))[0]
                self.nested -= 1
                if len(default) > 1 and default[0] == default[-1] and default[0] in "\"'":
                    default = default[1:-1]
            return *self.value(match["name"], self.text[position:end], default), end
        found = _NAME.match(self.text, position + 1, stop)
        if found is None:
            end = min(stop, position + 2)
            special = self.text[position:end]
            return ("$", "", position + 1) if len(special) < 2 or special[1].isspace() else ("", special, end)
        return *self.value(found[0], self.text[position : found.end()], None), found.end()

    def value(self, name: str, written: str, default: str | None) -> tuple[str, str]:
        if name in self.variables:
            self.spliced = self.spliced or self.variables[name] is None
            return self.variables[name] or "", ""
        found = self.environment.get(name) or default
        found = found if found is None or is_text(found) else None
        return ("", written) if found is None else (found, "")

    def _closed(self, position: int, stop: int, pair: str) -> int:
        """Where what the opening one of `pair` at `position` begins has ended."""
        depth = 0
        for at in range(position, stop):
            depth += {pair[0]: 1, pair[1]: -1}.get(self.text[at], 0)
            if depth == 0:
                return at + 1
        return stop


def _scalar(word: Word) -> Scalar:
    try:
        return resolve(word.text)
    except ValueError:
        return word.text
