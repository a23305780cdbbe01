"""Model and machine names of other systems -> our presets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from primus.config.presets import available
from primus.config.suggest import closest

ALIASES = {
    "deepseek2_16b": "deepseek_v2_lite",
    "deepseek2_236b": "deepseek_v2",
    "deepseek3_671b": "deepseek_v3_671B",
    "deepseek_v2_16b": "deepseek_v2_lite",
    "deepseek_v3": "deepseek_v3_671B",
    "llama3_405b": "llama3.1_405B",
    "llama3.1_8b_instruct": "llama3.1_8B",
    "llama3.1_70b_instruct": "llama3.1_70B",
    "llama4_17b_16e": "llama4_scout_17B_16E",
    "llama4_17b_128e": "llama4_maverick_17B_128E",
    "llama4_17b16e": "llama4_scout_17B_16E",
    "llama4_17bx16e": "llama4_scout_17B_16E",
    "llama4_17b128e": "llama4_maverick_17B_128E",
    "llama4_17bx128e": "llama4_maverick_17B_128E",
    "mixtral_8x7b_v0.1": "mixtral_8x7B",
    "mixtral_8x22b_v0.1": "mixtral_8x22B",
    **{f"qwen3_{size.lower()}_base": f"qwen3_{size}" for size in ("1.7B", "4B", "8B", "14B", "30B_A3B")},
}
"""Names that differ in more than case, dashes and endings."""

_PRECISION = re.compile(r"_(fp8|bf16)\Z")


class Model(NamedTuple):
    """preset: as ``extends`` takes it, None when there is none of this name; then near: the one most like it."""

    preset: str | None
    near: str | None
    fp8: bool


def model(name: str) -> Model:
    """The preset behind a model preset of the reference system, such as ``llama3.1_8B-fp8.yaml``."""
    form = re.sub(r"\.ya?ml\Z", "", Path(name).name, flags=re.IGNORECASE).lower().replace("-", "_")
    precision = _PRECISION.search(form)
    form = _PRECISION.sub("", form)
    known = {preset.partition("/")[2].lower(): preset for preset in available("models")}
    preset = known.get(ALIASES.get(form, form).lower())
    near = None if preset else closest(form, known, cutoff=0.5)
    return Model(preset, known[near] if near else None, precision is not None and precision[1] == "fp8")


def hardware(path: Path) -> str | None:
    """The hardware preset that the file's name or a directory above it speaks of, e.g. ``configs/MI300X/x.yaml``."""
    known = {preset.partition("/")[2].lower(): preset for preset in available("hardware")}
    for part in reversed(path.absolute().parts):
        for word in re.split(r"[^a-z0-9]+", part.lower()):
            if word in known and word != "cpu":
                return known[word]
    return None


def run(text: str) -> str:
    """`text` as the name of a run: without characters that a directory's name should not have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:128] or "imported"
