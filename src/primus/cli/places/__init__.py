"""The places before a command, ``primus-cli PLACE [FLAGS] -- COMMAND``: one file a place's flags, and how they nest.

A place's module has ``command``, a click command that returns the place.
"""

from __future__ import annotations

from importlib import import_module
from itertools import pairwise

from primus.cli.main import Segment
from primus.errors import UsageError
from primus.launch.places import Places

HOLDS = {
    "direct": (),
    "container": ("direct",),
    "slurm": ("container", "direct"),
    "kubernetes": ("direct",),
}
"""What a place may hold. Kubernetes brings the container itself."""


def parse(segments: tuple[Segment, ...]) -> Places | None:
    """The flags of all places; None when the help of one was printed instead. Raises UsageError for places that cannot
    be nested, and click's exceptions for wrong flags."""
    names = [segment.place for segment in segments]
    if any(inner not in HOLDS[outer] for outer, inner in pairwise(names)):
        allowed = ", ".join(f"{outer} > {inner}" for outer, held in HOLDS.items() for inner in held)
        raise UsageError(
            f"places cannot be nested like this: {' > '.join(names)}", remedy=f"from the outside in: {allowed}"
        )
    parsed: dict[str, object] = {}
    for segment in segments:
        command = import_module(f"primus.cli.places.{segment.place}").command
        place = command.main(list(segment.arguments), prog_name=f"primus-cli {segment.place}", standalone_mode=False)
        if isinstance(place, int):  # click's exit code, after help
            return None
        parsed[segment.place] = place
    return Places(**parsed)  # type: ignore[arg-type]


def check(segments: tuple[Segment, ...], words: tuple[str, ...]) -> bool:
    """Whether `words` can run in these places, whose flags are then right; False when a place printed its help.

    Raises as ``parse``, and UsageError for flags that the command would ignore.
    """
    places = parse(segments)
    if places is not None and not words:
        outer = segments[0].place
        raise UsageError(
            f"'{segments[-1].place}' needs a command after its flags",
            remedy=f"e.g. primus-cli {outer} ... -- train pretrain --config FILE",
        )
    if places is not None and places != Places() and words[:1] != ("train",):
        flags = " ".join(word for segment in segments for word in segment.arguments)
        raise UsageError(
            f"'{' '.join(words[:2])}' runs in one process on this machine: `{flags}` would change nothing",
            remedy="leave it out",
        )
    return places is not None


def places_of(segments: tuple[Segment, ...]) -> Places:
    """Where a checked command runs; without a place: direct, with its defaults."""
    return parse(segments) or Places()
