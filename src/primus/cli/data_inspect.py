"""What ``primus-cli data inspect`` shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from primus.data.format import bin_path, idx_path
from primus.data.inspect import Excerpt, Inspection, Lengths
from primus.errors import Problem

BAR = 24
VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
"""Control characters in the data are shown, not obeyed."""


def as_json(
    inspection: Inspection, lengths: Lengths, excerpts: Iterable[Excerpt], problems: Sequence[Problem] | None
) -> dict[str, Any]:
    """Everything as one JSON object; `verified` is null when it was not asked for."""
    header, manifest = inspection.header, inspection.manifest
    return {
        "prefix": str(inspection.prefix),
        "documents": header.documents,
        "sequences": header.sequences,
        "tokens": header.tokens,
        "dtype": header.dtype,
        "digest": inspection.digest,
        "lengths": asdict(lengths),
        "manifest": manifest.model_dump() if manifest else None,
        "samples": [asdict(excerpt) for excerpt in excerpts],
        "verified": None if problems is None else not problems,
        "warnings": [str(foreign)] if (foreign := inspection.foreign_tokenizer()) else [],
        "problems": [asdict(problem) for problem in problems or ()],
    }


def show(
    console: Console,
    inspection: Inspection,
    lengths: Lengths,
    excerpts: Iterable[Excerpt],
    problems: Sequence[Problem] | None,
) -> None:
    """Facts, a histogram of document lengths, and decoded samples."""
    console.print(Text(str(inspection.prefix), style="bold", overflow="fold"))
    console.print(_facts(inspection, lengths, problems))
    console.print()
    console.print(_histogram(lengths))
    if foreign := inspection.foreign_tokenizer():
        console.print(f"warning: {foreign}", style="yellow", markup=False)
    for excerpt in excerpts:
        body = Text(excerpt.text.translate(VISIBLE) if excerpt.text is not None else " ".join(map(str, excerpt.ids)))
        if excerpt.cut:
            body.append(" ...", style="dim")
        console.print(Panel(body, title=escape(excerpt.title), title_align="left", border_style="dim"))
    if inspection.tokenizer is None:
        console.print("ids are shown because no tokenizer is known: give one with --tokenizer DIR", markup=False)


def _facts(inspection: Inspection, lengths: Lengths, problems: Sequence[Problem] | None) -> Table:
    header, manifest = inspection.header, inspection.manifest
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, value: str) -> None:
        table.add_row(name, escape(value))

    sequences = "" if header.sequences == header.documents else f", {header.sequences:,} sequences"
    row("documents", f"{header.documents:,}{sequences}")
    row("tokens", f"{header.tokens:,} {header.dtype}")
    of_sample = "" if lengths.surveyed == header.documents else f" (from {lengths.surveyed:,} documents)"
    middle = f"median {lengths.median:,.0f}, mean {lengths.mean:,.1f}"
    row("per document", f"{lengths.shortest:,} to {lengths.longest:,}, {middle}{of_sample}")
    sizes = [decimal(path(inspection.prefix).stat().st_size) for path in (bin_path, idx_path)]
    row("files", f".bin {sizes[0]}, .idx {sizes[1]}")
    if manifest is None:
        row("manifest", "none: made elsewhere")
    else:
        if manifest.text_bytes:
            row("text", f"{decimal(manifest.text_bytes)}, {manifest.text_bytes / header.tokens:.2f} bytes a token")
        row("end of document", f"{manifest.eod_token} = {manifest.eod_id}" if manifest.eod_token else "none")
        tokenizer = manifest.tokenizer
        row("tokenizer", f"{tokenizer.vocab_size:,} ids, {tokenizer.origin}, {tokenizer.hash[:12]}")
        row("largest id", f"{manifest.max_id:,}")
        left_out = f"{manifest.empty_documents:,} empty, {manifest.bad_records:,} bad"
        row("left out", left_out)
        row("made by", manifest.encoder)
        for source in manifest.sources:
            files = f", {source.files:,} files" if source.files > 1 else ""
            row("source", f"{source.path}: {decimal(source.size)}{files}")
    row("digest", inspection.digest)
    row("integrity", _integrity(problems))
    return table


def _integrity(problems: Sequence[Problem] | None) -> str:
    if problems is None:
        return "sizes agree; --verify reads everything"
    return "; ".join(str(problem) for problem in problems) if problems else "verified: hashes, index and id range"


def _histogram(lengths: Lengths) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    table.add_row(Text("tokens a document", style="dim"), Text("documents", style="dim"), "")
    most = max(count for _, _, count in lengths.bins)
    for smallest, largest, count in lengths.bins:
        span = f"{smallest:,} - {largest:,}" if largest > smallest else f"{smallest:,}"
        table.add_row(span, f"{count:,}", Text("█" * max(1, round(BAR * count / most)), style="cyan"))
    return table
