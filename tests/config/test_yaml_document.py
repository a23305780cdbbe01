"""YAML into positioned trees: what scalars mean, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from primus.config.document import parse
from primus.config.load import load
from primus.config.scalars import resolve
from primus.config.source import Source, split_lines
from primus.errors import ConfigError, Problem

Write = Callable[..., str]


def tree(text: str):
    return parse(text, Source("file", "f.yaml", "f.yaml", split_lines(text)))


def refused(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        tree(text)
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("-7", -7), ("+7", 7), ("0", 0), ("1_000_000", 1_000_000), ("0x1F", 31), ("0o17", 15),
        ("1e-5", 1e-5), ("1.0e-5", 1e-5), ("3E4", 3e4), (".5", 0.5), ("2.", 2.0), ("-1.5e+3", -1500.0), ("1_0.5", 10.5),
        (".inf", math.inf), ("-.INF", -math.inf),
        ("true", True), ("True", True), ("FALSE", False), ("", None), ("~", None), ("null", None),
        # text, whatever YAML 1.1 thinks of it
        ("yes", "yes"), ("on", "on"), ("No", "No"), ("010", "010"), ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1__0", "1__0"), ("_1", "_1"), ("1_", "1_"), ("0b11", "0b11"), ("1e", "1e"), ("e5", "e5"), ("1.2.3", "1.2.3"),
        ("10m", "10m"), (".", "."), ("-", "-"), ("nan", "nan"), ("inf", "inf"), ("1,000", "1,000"),
        ("٣", "٣"), ("1\n", "1\n"),
    ],
)  # fmt: skip
def test_plain_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = resolve(text)
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(resolve(".nan"))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["9223372036854775808", "-9223372036854775808", "9" * 5000, "0x" + "f" * 17])
def test_integers_beyond_64_bits_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        resolve(text)
    assert refused(f"a: {text}")[0].where == "f.yaml:1:4"


def test_every_key_and_value_knows_its_place() -> None:
    root = tree("a:\n  bé: [1, {c: 'x'}]\n日本: 2\n")
    assert root is not None
    inner = root.value["a"].node.value["bé"]
    assert (inner.key.line, inner.key.column) == (2, 3)
    assert [(item.mark.line, item.mark.column) for item in inner.node.value] == [(2, 8), (2, 11)]
    assert inner.node.value[1].value["c"].node.mark.column == 15
    assert root.value["日本"].node.mark.column == 5


def test_quotes_and_block_scalars_are_text() -> None:
    assert tree("a: '1'\nb: \"true\"\nc: |\n  5\nd: !!str 7\n").plain() == {"a": "1", "b": "true", "c": "5\n", "d": "7"}


def test_anchors_and_merge_keys() -> None:
    root = tree("base: &b {x: 1, y: 2}\nmore: &m {y: 3, z: 4}\nc:\n  <<: [*b, *m]\n  x: 9\nd: *b\n")
    assert root.plain()["c"] == {"x": 9, "y": 2, "z": 4}
    assert root.plain()["d"] == {"x": 1, "y": 2}


def test_duplicate_keys_are_all_named() -> None:
    found = refused("a: 1\nb: {c: 1, c: 2}\na: 2\n")
    assert [item.where for item in found] == ["f.yaml:2:11", "f.yaml:3:1"]
    assert "first in line 1" in found[1].message


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("a:\n\tb: 1\n", "2:1", "tab"),
        ("a: b: c\n", "1:5", "no key can stand"),
        ("a: [1, 2\nb: 3\n", "1:4", "the list that begins here"),
        ("a: {b: 1\n", "1:4", "the map that begins here"),
        ('a: "x\n', "1:4", "quoted text is not closed"),
        ("a: 1\n b: 2\n", "2:3", "no key can stand"),
        ("a: 1\nb\n", "3:1", "without ':'"),
        ("a: 1\n---\nb: 2\n", "2:1", "second document"),
        ("a: *x\n", "1:4", "no anchor '&x'"),
        ("a: &x [1, *x]\n", "1:11", "its own definition"),
        ("{}: 1\n", "1:1", "a key must be a word"),
        ("[1]: 1\n", "1:1", "a key must be a word"),
        (": 1\n", "1:1", "a key is missing"),
        ("a: !!python/object:os.system x\n", "1:4", "is not supported"),
        ("a: @x\n", "1:4", "cannot begin with '@'"),
        ("a: %x\n", "1:4", "cannot begin with '%'"),
        ("a: [${X:1}]\n", "1:6", "must be in quotes"),
        ("<<: 3\n", "1:1", "takes a map"),
        ("a: \x07\n", "1:4", "control character"),
    ],
)
def test_syntax_errors_name_the_place_in_plain_words(text: str, place: str, said: str) -> None:
    found = refused(text)
    assert said in found[0].message
    assert found[0].where == f"f.yaml:{place}"


def test_nesting_is_bounded() -> None:
    assert "levels deep" in refused("a: " + "[" * 100_000)[0].message
    assert "levels deep" in refused("".join("  " * depth + "a:\n" for depth in range(200)))[0].message


def test_alias_bombs_are_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "more than 100000 values" in refused("\n".join(lines))[0].message


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "\n\n"])
def test_an_empty_file_says_so(write: Write, text: str) -> None:
    with pytest.raises(ConfigError, match="is empty"):
        load(write(text))


@pytest.mark.parametrize("text", ["- a\n", "hello\n", "3\n"])
def test_a_file_that_is_no_map_says_so(write: Write, text: str) -> None:
    with pytest.raises(ConfigError, match=r"e\.yaml:1:1: .*key: value"):
        load(write(text))


def test_files_that_cannot_be_read(write: Write, tmp_path: Path) -> None:
    write("a: 1\n", "quickstart.yaml")
    (tmp_path / "folder").mkdir()
    for name, said in {
        "quickstrat.yaml": "did you mean quickstart.yaml",
        "folder": "is a directory",
        "quickstart.yaml/x": "there is no file|Not a directory",
        "a\0b": "cannot be read",
        write(b"\xff\xfea\x00", "utf16.yaml"): "UTF-16",
    }.items():
        with pytest.raises(ConfigError, match=said):
            load(name)


def test_a_byte_that_is_not_utf8_is_placed(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"^e\.yaml:2:5: byte 0xe9 is not UTF-8"):
        load(write("ü: 1\nb: ü".encode() + b"\xe9\n"))


def test_a_byte_order_mark_is_no_part_of_the_first_key(write: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(b"\xef\xbb\xbfnaem: x\n"))
    assert any("'naem'" in str(item) and item.where == "e.yaml:1:1" for item in caught.value.problems)


def test_windows_line_ends(write: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write("name: q\r\nnoise: 1\r\n"))
    assert any(item.where == "e.yaml:2:1" for item in caught.value.problems)
