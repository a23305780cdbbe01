"""What Kubernetes takes as a name, a label or a quantity, and names for it out of ours."""

from __future__ import annotations

import hashlib
import re

LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""RFC 1123: names of namespaces, parts of other names."""
QUALIFIED = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
"""The name of a label or resource behind its prefix, and a label's value."""
QUANTITY = re.compile(r"([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)(m|[kMGTPE]|[KMGTPE]i|[eE][0-9]+)?")
LONGEST_NAME = 43
"""Of a run's objects. The longest name made of it is that of a pod, ``NAME-node-0-99999-abcde``, of at most 63."""


def object_name(run: str) -> str:
    """The name of the objects of `run`: `run` itself where Kubernetes takes it, else the nearest to it with a few
    digits of its hash, so that two runs never share one. A letter first, as names of services want it (RFC 1035)."""
    name = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    if not name[:1].isalpha():
        name = f"run-{name}".rstrip("-")
    if name == run and len(name) <= LONGEST_NAME:
        return name
    digits = hashlib.sha256(run.encode("utf-8", "surrogateescape")).hexdigest()[:6]
    return f"{name[: LONGEST_NAME - 7].rstrip('-')}-{digits}"


def is_subdomain(text: str) -> bool:
    """Whether `text` can name an object: RFC 1123 labels between dots."""
    return len(text) <= 253 and all(LABEL.fullmatch(part) for part in text.split("."))


def is_key(text: str) -> bool:
    """Whether `text` can be the key of a label or the name of a resource: ``[PREFIX/]NAME``."""
    prefix, slash, name = text.rpartition("/")
    return bool(QUALIFIED.fullmatch(name)) and (is_subdomain(prefix) if slash else True)


def is_label_value(text: str) -> bool:
    return not text or bool(QUALIFIED.fullmatch(text))


def quantity_fault(text: str, *, whole: bool = False, memory: bool = False) -> str:
    """What is wrong with the quantity `text`; empty when nothing is. whole: it counts things. memory: it is bytes."""
    match = QUANTITY.fullmatch(text)
    if not match:
        if near := re.fullmatch(r"([0-9.]+) *([KMGTPkmgtp])i?[Bb]?", text):
            return f"is not a quantity; did you mean {near[1]}{near[2].upper()}i?"
        return "is not a quantity, such as " + ("64Gi" if memory else "8" if whole else "16 or 500m")
    if float(match[1]) == 0:
        return "is nothing"
    if whole and not text.isdecimal():
        return "is not a whole number"
    if memory and match[2] == "m":
        return f"is a fraction of a byte; did you mean {match[1]}Mi?"
    return ""
