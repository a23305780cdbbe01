"""Text to token dataset: MB of text a CPU-second, whole processes, against the raw encoder and the usual way.

Goals, as ratios to the raw fast encoder (arrays a batch of documents) measured in the same run: 0.45 with a vocabulary
of 4,096 and 0.28 with 129,000; ten times the usual way; at most 400 MB a process. Two workers are compared with two
raw encoders at once, each on half of the documents: they too warm two caches and share the machine's memory.

The usual way is what Megatron's ``preprocess_data.py`` does by default, one worker: parse a line, encode it with
`tokenizers`, append the list of ids to the file document by document. It is re-created here, not Megatron's own code.

The text: Python sources and C++ headers of this environment, in JSON Lines. Starting the processes and loading the
tokenizer is included; with less text it weighs more. The wide tokenizer takes minutes to train, once; it is kept
under PRIMUS_HOME/benchmarks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from primus.data.train_bpe import train_bpe
from primus.home import primus_home

MEGABYTES = int(os.environ.get("PRIMUS_BENCHMARK_MB", "500"))
SLOW_MEGABYTES = 8
WIDE_SAMPLE = 250
CHARACTERS = 6000

RAW = """
import sys, time, orjson, gigatoken
number, count = int(sys.argv[3]), int(sys.argv[4])
lines = [line for at, line in enumerate(open(sys.argv[1], "rb")) if at % count == number]
texts = [orjson.loads(line)["text"] for line in lines]
tokenizer = gigatoken.Tokenizer.from_json(open(sys.argv[2], "rb").read())
print("ready", flush=True)
sys.stdin.readline()
started = time.process_time()
for first in range(0, len(texts), 256):
    tokenizer.encode_batch(texts[first : first + 256], parallel=False)
print(time.process_time() - started)
"""
USUAL = """
import sys, json
import numpy as np
from tokenizers import Tokenizer
tokenizer, dtype = Tokenizer.from_file(sys.argv[2]), np.dtype(sys.argv[4])
lengths = []
with open(sys.argv[3] + ".bin", "wb") as out:
    for line in open(sys.argv[1], encoding="utf-8"):
        ids = tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
        ids.append(0)
        out.write(np.array(ids, dtype=dtype).tobytes(order="C"))
        lengths.append(len(ids))
"""


def documents(megabytes: int) -> Iterator[str]:
    """At most this much text: the standard library first, then other packages, then headers."""
    left = megabytes * 10**6
    stdlib, packages = (Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
    for root, pattern in ((stdlib, "*.py"), (packages, "*.py"), (packages, "*.h")):
        for path in sorted(root.rglob(pattern)):
            try:
                text = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue  # test files of Python's own are in other encodings on purpose
            for start in range(0, len(text), CHARACTERS):
                yield text[start : start + CHARACTERS]
                left -= len(text[start : start + CHARACTERS])
                if left <= 0:
                    return


def write_jsonl(path: Path, megabytes: int) -> float:
    """Returns the text's size in MB (UTF-8)."""
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for text in documents(megabytes):
            file.write(json.dumps({"text": text}) + "\n")
            size += len(text.encode())
    return size / 1e6


def run(*command: str) -> tuple[float, float, str]:
    """(CPU-seconds, MB of the largest process, output) of a command, children included."""
    script = "import resource, subprocess, sys; r = subprocess.run(sys.argv[1:]); u = resource.getrusage(-1); "
    script += "print(u.ru_utime + u.ru_stime, u.ru_maxrss, file=sys.stderr); sys.exit(r.returncode)"
    ended = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(ended.stderr)
    seconds, kilobytes = ended.stderr.splitlines()[-1].split()
    return float(seconds), float(kilobytes) / 1024, ended.stdout


def raw(source: Path, tokenizer: Path, count: int) -> float:
    """CPU-seconds that `count` encoders at once take for the whole text, without reading it."""
    command = [sys.executable, "-c", RAW, str(source), str(tokenizer / "tokenizer.json")]
    pipe = subprocess.PIPE
    encoders = [
        subprocess.Popen([*command, str(number), str(count)], stdin=pipe, stdout=pipe, text=True)
        for number in range(count)
    ]
    for encoder in encoders:
        assert encoder.stdout
        encoder.stdout.readline()
    for encoder in encoders:
        assert encoder.stdin
        encoder.stdin.write("go\n")
        encoder.stdin.flush()
    return sum(float(encoder.communicate()[0]) for encoder in encoders)


def prepare(source: Path, output: Path, tokenizer: Path, workers: int) -> tuple[float, float]:
    command = [sys.executable, "-m", "primus.cli", "data", "prepare", str(source), "-o", str(output)]
    seconds, megabytes, _ = run(*command, "--tokenizer", str(tokenizer), "--workers", str(workers), "--overwrite")
    return seconds, megabytes


def measure(name: str, tokenizer: Path, directory: Path, sizes: tuple[float, float]) -> None:
    source, few = directory / "all.jsonl", directory / "few.jsonl"
    size, few_size = sizes
    rows: list[tuple[str, float, float, str]] = []
    for workers in (1, 2):
        alone = size / raw(source, tokenizer, workers)
        rows.append((f"gigatoken alone, {workers} at once", alone, alone, ""))
        seconds, memory = prepare(source, directory / f"{name}-{workers}", tokenizer, workers)
        rows.append((f"data prepare --workers {workers}", size / seconds, alone, f"{memory:.0f}"))
    dtype = "uint16" if name == "4k" else "int32"
    usual = str(directory / "usual")
    seconds, memory, _ = run(sys.executable, "-c", USUAL, str(few), str(tokenizer / "tokenizer.json"), usual, dtype)
    rows.append(("the usual way (tokenizers, lists)", few_size / seconds, rows[0][1], f"{memory:.0f}"))
    for label, rate, alone, megabytes in rows:
        print(f"{name:>5}  {label:<36} {rate:>8.1f} {rate / alone:>7.2f} {rate / rows[-1][1]:>8.1f} {megabytes:>6}")


def main() -> None:
    wide = primus_home() / "benchmarks" / "bpe-129000"
    if not (wide / "tokenizer.json").is_file():
        print("training a tokenizer of 129,000 entries (once, a few minutes)", file=sys.stderr)
        train_bpe(documents(WIDE_SAMPLE), 129_000, wide)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        train_bpe(documents(10), 4096, directory / "bpe-4096")
        sizes = write_jsonl(directory / "all.jsonl", MEGABYTES), write_jsonl(directory / "few.jsonl", SLOW_MEGABYTES)
        print(f"{sizes[0]:.0f} MB of text; {sizes[1]:.0f} MB for the usual way; whole processes, start included")
        print(f"{'vocab':>5}  {'':<36} {'MB/CPU-s':>8} {'of raw':>6} {'x usual':>8} {'MB RSS':>6}")
        for label, tokenizer in (("4k", directory / "bpe-4096"), ("129k", wide)):
            measure(label, tokenizer, directory, sizes)


if __name__ == "__main__":
    main()
