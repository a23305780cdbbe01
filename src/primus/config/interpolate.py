"""``${VAR}`` and ``${VAR:default}`` in values, from the environment of the launching machine.

A value that is one interpolation and nothing else is read again as a scalar, so ``steps: ${STEPS:100}`` is a number.
An empty variable counts as unset. ``$${`` writes a literal ``${``. Results are not searched for further variables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from primus.config.document import Entry, Node
from primus.config.scalars import Scalar, is_text, resolve
from primus.config.secrets import is_secret
from primus.errors import Problem

_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<body>[^{}]*)\}|\$\{")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def interpolate(node: Node, environment: Mapping[str, str], problems: list[Problem]) -> Node:
    """`node` with every reference replaced; what cannot be replaced is appended to `problems`."""
    value = node.value
    if isinstance(value, dict):
        entries = {
            key: Entry(entry.key, interpolate(entry.node, environment, problems)) for key, entry in value.items()
        }
        return node._replace(value=entries)
    if isinstance(value, list):
        return node._replace(value=[interpolate(item, environment, problems) for item in value])
    if not isinstance(value, str) or "${" not in value:
        return node

    before = len(problems)

    def substitute(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        found = _look_up(match["body"], environment)
        if isinstance(found, str):
            return found
        if len(problems) == before:  # one complaint a value
            problems.append(node.mark.problem(*found))
        return ""

    text = _REFERENCE.sub(substitute, value)
    whole = _REFERENCE.fullmatch(value)
    if whole is None or whole[0] == "$${" or len(problems) > before:
        return node._replace(value=text, text=text)
    typed: Scalar = text
    try:
        typed = resolve(text)
    except ValueError as error:
        problems.append(node.mark.problem(f"{value} gives '{text[:40]}': {error}"))
    return node._replace(value=typed, text=text, interpolated=True)


def _look_up(body: str | None, environment: Mapping[str, str]) -> str | tuple[str, str]:
    """The text a reference stands for, or (message, remedy)."""
    usage = "write ${NAME} or ${NAME:default}; $${ is a literal ${"
    if body is None:
        return "'${' is not closed, or holds another '${'", usage
    name, colon, default = body.partition(":")
    found = environment.get(name, "")
    complaint: tuple[str, str] | None = None
    if not _NAME.match(name):
        complaint = f"'{name}' is not the name of a variable", usage
    elif default.startswith("-"):
        complaint = f"'${{{body}}}': ':-' is the shell's way", f"write ${{{name}:{default[1:]}}}"
    elif is_secret(name):
        complaint = (
            f"'{name}' looks like a secret, and values are written into plan.json and report.html",
            "leave it out: the ranks inherit the environment that you launch from",
        )
    elif not found and not colon:
        state = "is empty" if name in environment else "is not set"
        complaint = f"the environment variable '{name}' {state}", f"set it, or give a default: ${{{name}:default}}"
    elif not is_text(found):
        complaint = f"the environment variable '{name}' is not UTF-8 text", "set it again"
    return complaint or found or default
