"""Checks of the pages and the house: ``--links`` that every relative link and anchor leads somewhere, ``--sizes`` that
no source file grew too long to read. Prints each fault as ``file:line: what``; exit code 1 when there is one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 500
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6}\s+(.*)$", re.MULTILINE)
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def tracked(*patterns: str) -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in names.stdout.split("\0") if name and (ROOT / name).is_file()]


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors a forge makes of a page's headings: lower case, punctuation dropped, spaces to hyphens."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in HEADING.findall(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return frozenset(found)


def broken_links() -> Iterator[str]:
    for page in tracked("*.md"):
        text = CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), page.read_text(encoding="utf-8"))
        for match in LINK.finditer(text):
            target, _, anchor = (match[1] or match[2]).partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            there = (page.parent / target).resolve() if target else page
            line = text.count("\n", 0, match.start()) + 1
            where = f"{page.relative_to(ROOT)}:{line}"
            if not there.exists():
                yield f"{where}: {target} does not exist"
            elif anchor and there.suffix == ".md" and anchor not in anchors(there):
                yield f"{where}: {target or page.name} has no heading #{anchor}"


def long_files() -> Iterator[str]:
    for file in tracked("*.py", "primus-cli"):
        lines = file.read_text(encoding="utf-8").count("\n")
        if lines > LONGEST:
            yield f"{file.relative_to(ROOT)}:{lines}: longer than {LONGEST} lines; split it by what it does"


def main() -> int:
    checks = {"--links": broken_links, "--sizes": long_files}
    faults = [fault for option in sys.argv[1:] for fault in checks[option]()]
    sys.stdout.write("".join(f"{fault}\n" for fault in faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
