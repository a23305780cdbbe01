"""A foreign file -> our experiment and the account of every key.

The table decides about each setting on its own; here the results meet: two settings for one key, native keys against
the engine's schema, and at last our own loader, whose refusals send a setting back to what is not carried.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from primus.config import native
from primus.config.document import Entry, Node, parse
from primus.config.importing import assumed, assumed_maxtext, decide, inputs, judge, names, write
from primus.config.importing.assumed import Assumed
from primus.config.importing.inputs import Input
from primus.config.importing.rules import Drop, Idle, Native, Others, Outcome, Put, Same, lookup, truth
from primus.config.importing.settings import Setting
from primus.config.importing.table import LAUNCHING, TABLES
from primus.config.importing.write import Value
from primus.config.interpolate import interpolate
from primus.config.keys import keys
from primus.config.presets import available, read_text, root
from primus.config.source import Mark, Source
from primus.config.suggest import closest
from primus.errors import ConfigError, Problem

if TYPE_CHECKING:
    from primus.backends.base import NativeSchema

Schemas = Callable[[str], "NativeSchema | None"]
"""Backend -> the schema of the engine's own keys; None when there is no such backend."""

MOST_ROUNDS = 100
MOST_GUESSES = 300
"""A file of another program may hold thousands of unknown keys."""


class Carried(NamedTuple):
    """to: the keys it went to; none when it is so here anyway, or has no effect there: then note says which."""

    setting: Setting
    to: tuple[str, ...]
    note: str


class Left(NamedTuple):
    """A setting that is not carried."""

    setting: Setting
    reason: str
    hint: str = ""


@dataclass
class Import:
    """The whole account. Every setting of the input is in one of carried and left. missing: what keeps `config check`
    from accepting the text. differences: what the other engine does, because the file does not say otherwise, and
    we cannot."""

    input: Input
    carried: list[Carried] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    assumed: list[Assumed] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    missing: list[Problem] = field(default_factory=list)
    text: str = ""


def convert(path: Path, environment: Mapping[str, str], schemas: Schemas, hardware: str | None = None) -> Import:
    """Import the file at `path`. hardware: name of a hardware preset; default: the one that the path speaks of.

    Raises ConfigError for what cannot be read, or is nothing to import.
    """
    if hardware is not None and f"hardware/{hardware}" not in available("hardware"):
        known = [name.partition("/")[2] for name in available("hardware")]
        near = closest(hardware, known)
        remedy = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"there is no hardware preset '{hardware}'", remedy=remedy)
    return _Importer(inputs.read(path, environment), environment, schemas, hardware).run()


class _Importer:
    def __init__(self, source: Input, environment: Mapping[str, str], schemas: Schemas, hardware: str | None) -> None:
        self.source = source
        self.environment = environment
        self.backend = source.framework
        schema = schemas(self.backend)
        self.native = schema.keys if schema else {}
        self.table = TABLES[self.backend] | (LAUNCHING if source.kind == "arguments" else {})
        self.engine = decide.Engine(self.backend, self.table, self.native, schema.omitted if schema else {})
        self.result = Import(source)
        self.values: dict[str, Value] = {}
        self.extends: list[Value] = []
        self.hardware = f"hardware/{hardware}" if hardware else names.hardware(source.path)
        self.hardware_note = "" if hardware else "hardware from the path"

    def run(self) -> Import:
        settings = [self.resolved(item) for item in self.source.settings]
        head = [self.resolved(item) for item in self.source.head]
        model = next((item for item in (*head, *settings) if item.name in ("model", "model_name")), None)
        preset = str(model.node.value) if model and model.node.value not in (None, "", "default") else ""
        plain = self.source.kind != "experiment"
        others = Others(self.by_name(settings), preset=preset, plain=plain, devices=self.devices())
        for item in head:
            self.take(item, decide.head(item, self.backend))
        if self.hardware:
            self.extends.append(Value(self.hardware, note=self.hardware_note))
        last = {item.name: item for item in settings}
        for item in settings:
            if last[item.name] is item:
                guess = len(self.result.left) < MOST_GUESSES
                self.take(item, decide.setting(item, others, self.engine, guess=guess))
            else:
                self.leave(item, f"given again in line {last[item.name].key.line}, and the last one counts")
        for item in self.source.anchors:
            self.carry(item, note="an anchor, used below")
        for item in self.source.unread:
            self.leave(item, item.problem)
        self.assume(others)
        self.settle(others)
        self.result.carried.sort(key=lambda item: (item.setting.key.line, item.setting.key.column))
        self.result.left.sort(key=lambda item: (item.setting.key.line, item.setting.key.column))
        self.result.text = write.as_text(self.lines())
        return self.result

    def resolved(self, setting: Setting) -> Setting:
        """`setting` with its ``${VAR}`` replaced; a shell script's have been already."""
        if setting.problem or self.source.kind == "arguments":
            return setting
        problems: list[Problem] = []
        node = interpolate(setting.node, self.environment, problems)
        held = setting.node.value
        one = held[0] if isinstance(held, list) and len(held) == 1 else setting.node
        raw = one.value if isinstance(one.value, str) and "${" in one.value else ""
        return setting._replace(node=node, raw=raw, problem=problems[0].message if problems else "")

    def by_name(self, settings: list[Setting]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for item in settings:
            values[item.name] = None if item.problem else item.node.plain()
            rule = lookup(self.table, item.name)
            if rule and rule[1]:
                values[re.sub(r"\A(no|disable)_", "", item.name)] = truth(values[item.name]) is False
        return values

    # and where it goes

    def take(self, setting: Setting, outcome: Outcome) -> None:
        match outcome:
            case Drop(reason, hint):
                self.leave(setting, reason, hint)
            case Same(note):
                self.carry(setting, note=f"always so here: {note}")
            case Idle(note):
                self.carry(setting, note=f"without effect there: {note}")
            case Native():
                self.take_native(setting, outcome)
            case Put():
                self.put(setting, outcome)

    def take_native(self, setting: Setting, outcome: Native) -> None:
        key = f"{self.backend}.{outcome.key}"
        if outcome.key not in self.native:
            near = closest(outcome.key, self.native, cutoff=0.85)
            nothing = f"no such native key: {key}"
            hint = f"did you mean {near}?" if near else ""
            self.leave(setting, outcome.instead or nothing, "" if outcome.instead else hint)
            return
        node = _node(outcome.value, setting.node.mark)
        for part in reversed(outcome.key.split(".")):
            node = Node({part: Entry(setting.key, node)}, setting.key)
        problems = native.check({self.backend: Entry(setting.key, node)})[1]
        if problems:
            self.leave(setting, problems[0].message, problems[0].remedy)
        else:
            self.put(setting, Put({key: outcome.value}, verbatim=outcome.value == setting.node.plain()))

    def put(self, setting: Setting, outcome: Put) -> None:
        raw = setting.raw if outcome.verbatim else ""
        note = outcome.note or (f"{setting.raw} is this now" if setting.raw and not raw else "")
        to = (f"extends: {value}" if target == "extends" else target for target, value in outcome.values.items())
        self.carry(setting, tuple(to), note)
        for target, value in outcome.values.items():
            if target == "extends":
                self.extends.append(Value(value, (setting,), note))
                continue
            there = self.values.get(target)
            if there and there.value != value:
                for earlier in there.settings:
                    self.withdraw(earlier, f"line {setting.key.line} sets {target} otherwise, which counts")
                there = None
            before = there.settings if there else ()
            self.values[target] = Value(value, (*before, setting), note, there.raw if there else raw)

    def carry(self, setting: Setting, to: tuple[str, ...] = (), note: str = "") -> None:
        self.result.carried.append(Carried(setting, to, note))

    def leave(self, setting: Setting, reason: str, hint: str = "") -> None:
        self.result.left.append(Left(setting, reason, hint))

    def withdraw(self, setting: Setting, reason: str, hint: str = "") -> None:
        """Turn what was carried into what is not."""
        for item in [item for item in self.result.carried if item.setting is setting]:
            self.result.carried.remove(item)
            for target in item.to:
                if target in self.values:
                    rest = tuple(other for other in self.values[target].settings if other is not setting)
                    self.values[target] = self.values[target]._replace(settings=rest)
                    if not rest:
                        del self.values[target]
            self.leave(setting, reason, hint)

    # what the file does not say

    def assume(self, others: Others) -> None:
        found = [Assumed("name", names.run(self.source.path.stem), "from the file's name")]
        if self.backend == "megatron":
            found += assumed.megatron(others, self.values)
            self.result.differences = list(assumed.differences(others)) if others.plain else []
        elif self.backend == "maxtext":
            found += assumed_maxtext.maxtext(others)
            self.result.differences = list(assumed_maxtext.differences(others))
        else:
            found += assumed.torchtitan(others)
        if others.plain:
            found.append(Assumed("backend", self.backend, f"the file is {self.source.words}"))
        rules = (lookup(self.table, item.setting.name) for item in self.result.left)
        spoken = {rule[0].text for rule in rules if rule}  # set there, if to something that we do not have
        for item in found:
            if item.target == "name" or not any(text.startswith(item.target) for text in spoken):
                self.set_unless(item)
        if others.devices and self.backend != "maxtext":
            batch = assumed.global_batch({key: item.value for key, item in self.values.items()}, others.devices)
            if batch:
                self.set_unless(batch)

    def set_unless(self, item: Assumed) -> None:
        if item.target not in self.values:
            self.values[item.target] = Value(item.value, note=item.note)
            self.result.assumed.append(item)

    def devices(self) -> int | None:
        """Devices of a node of the chosen hardware."""
        if self.hardware is None:
            return None
        path = root() / f"{self.hardware}.yaml"
        tree = parse(read_text(path, str(path)), Source("preset", self.hardware, str(path)))
        found = tree.plain()["hardware"].get("devices_per_node") if tree else None
        return found if isinstance(found, int) else None

    # the file

    def lines(self) -> list[write.Line]:
        source = self.source
        head = [
            f"Imported from {source.path}, {source.words}, by `primus-cli config import`.",
            "Behind each value: its line and key there.",
        ]
        tail: list[str] = []
        if self.result.left:
            shown = [
                (
                    f"{item.reason}{f' ({item.hint})' if item.hint else ''}",
                    f"{item.setting.key.line}: {item.setting.shown}",
                )
                for item in self.result.left
            ]
            tail += ["Not carried, by reason:", *write.grouped(shown)]
        if self.result.differences:
            tail += ["Otherwise here:", *self.result.differences]
        return write.lines(head, self.extends, self.values, tail)

    def settle(self, others: Others) -> None:
        """Have our loader judge, until all that it refuses is out."""
        missing: list[Problem] = []
        for _ in range(MOST_ROUNDS):
            lines = self.lines()
            verdicts = judge.verdicts(lines, self.environment, hardware=self.hardware is not None)
            missing = [item.problem for item in verdicts if not self.blame(item)]
            if len(missing) == len(verdicts):
                break
        if "model.hidden_size" in self.values and not others.preset and "model.model_type" not in self.values:
            missing.insert(0, Problem("", f"model.model_type cannot be told: {assumed.model_type(others)[1]}"))
        if self.hardware is None:
            known = ", ".join(name.partition("/")[2] for name in available("hardware"))
            missing.append(Problem("", "the file names no hardware", f"give --hardware NAME: {known}"))
        self.result.missing += missing

    def blame(self, verdict: judge.Verdict) -> bool:
        """Take back what set the key, or made the section, that was refused. False when the file did not set it."""
        section = keys().get(verdict.target)
        needed = section is not None and section.field.is_required()  # the whole of it is not to blame
        nested = None if needed or not verdict.target else f"{verdict.target}."
        targets = [key for key in self.values if key == verdict.target or (nested and key.startswith(nested))]
        for target in targets:
            if target not in self.values:
                continue
            for setting in self.values[target].settings:
                self.withdraw(setting, verdict.problem.message, verdict.problem.remedy)
            if target in self.values:  # nobody set it: it was assumed
                value = self.values.pop(target).value
                self.result.assumed = [item for item in self.result.assumed if item.target != target]
                self.result.differences.append(f"{target} would be {value} there: {verdict.problem.message}")
        return bool(targets)


def _node(value: Any, mark: Mark) -> Node:
    if isinstance(value, dict):
        return Node({str(key): Entry(mark, _node(item, mark)) for key, item in value.items()}, mark)
    if isinstance(value, list):
        return Node([_node(item, mark) for item in value], mark)
    return Node(value, mark, text=str(value))
