# SPDX-License-Identifier: Apache-2.0
"""Tests from YAML 1.1's text and the limits that documents.py promises."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from metropolis.node.core.network.policy.kubernetes.documents import (
    BYTES_MAX,
    DEPTH_MAX,
    DOCUMENTS_MAX,
    VALUES_MAX,
    Document,
    Unquoted,
    Value,
    load,
    printable,
)


def plain(value: Value | None) -> object:
    """Return a value without lines; an Unquoted as its words."""
    assert value is not None
    if isinstance(value.plain, list):
        return [plain(item) for item in value.plain]
    if isinstance(value.plain, dict):
        return {key: plain(item) for key, item in value.plain.items()}
    return value.plain


def one(text: str | bytes) -> Document:
    (found,) = load(text, "f")
    return found


def error(text: str | bytes) -> tuple[int, str]:
    found = one(text)
    assert found.value is None
    return found.line, found.error


def test_values_and_lines() -> None:
    found = one("a:\n  - 1\n  - '1'\n  - x\n  -\nb: {c: ~}\n")
    assert plain(found.value) == {"a": [1, "1", "x", None], "b": {"c": None}}
    assert found.value is not None
    assert isinstance(found.value.plain, dict)
    assert (found.source, found.line, found.value.plain["b"].line) == ("f", 1, 6)


def test_json_is_read() -> None:
    assert plain(one('{"a": ["b", 80, null]}').value) == {"a": ["b", 80, None]}


@pytest.mark.parametrize("text", ["", "\n", "# only this\n", "---\n---\n", "---\n# x\n...\n"])
def test_nothing(text: str) -> None:
    assert load(text, "f") == []


def test_documents_have_lines_of_the_text() -> None:
    found = load("# first\na: 1\n--- # second\nb: 2\n...\n---\n\nc: 3\n", "f")
    assert [(each.line, plain(each.value)) for each in found] == [
        (2, {"a": 1}),
        (4, {"b": 2}),
        (8, {"c": 3}),
    ]


def test_a_document_that_is_not_yaml_stops_no_other() -> None:
    found = load("a: 1\n---\nb: [\n---\nc: 'x\n---\nd: 4\n", "f")
    assert [each.value is None for each in found] == [False, True, True, False]
    assert found[1].error.startswith("not YAML: ")
    assert found[1].line in (3, 4)
    assert plain(found[3].value) == {"d": 4}


def test_a_directive_belongs_to_its_document() -> None:
    assert plain(one("%YAML 1.1\n# x\n---\na: 1\n").value) == {"a": 1}


def test_separators_within_words_are_none() -> None:
    assert plain(one("a: |\n  ---\n  x\nb: a---b\n").value) == {"a": "---\nx\n", "b": "a---b"}


@pytest.mark.parametrize(
    ("text", "what"),
    [(word, "a boolean") for word in ("no", "No", "ON", "off", "yes", "y", "N", "true", "False")]
    + [
        (word, "a number")
        for word in ("1.0", "1e3", "1_000", "010", "0x10", "0o17", "+5", "1:30", ".inf", ".5")
    ]
    + [("9" * 5000, "a number")],
)
def test_words_that_are_no_strings(text: str, what: str) -> None:
    assert plain(one(f"a: {text}").value) == {"a": Unquoted(text, what)}
    assert plain(one(f"a: '{text}'").value) == {"a": text}
    assert plain(one(f"a: !!str {text}").value) == {"a": text}


@pytest.mark.parametrize(
    "text", ["x", "2024-01-01", "nope", "1.2.3.4", "10.0.0.0/8", "v1", "-", "="]
)
def test_words_that_are_strings(text: str) -> None:
    assert plain(one(f"[{text}, x]" if text != "-" else "['-', x]").value) == [text, "x"]


@settings(deadline=None)
@given(st.from_regex(r"[-+0-9eE._:xoabBnNyYtTfFrRuUlLsSiI~]{1,12}", fullmatch=True))
def test_no_word_is_a_string_that_yaml_takes_for_another(text: str) -> None:
    try:
        theirs = yaml.safe_load(f"k: {text}")
    except yaml.YAMLError, ValueError:
        return
    found = one(f"k: {text}")
    if not isinstance(theirs, dict) or found.value is None:
        return
    ours = plain(found.value)
    assert isinstance(ours, dict)
    if "k" in theirs and isinstance(theirs["k"], bool | int | float | None):
        assert not isinstance(ours["k"], str)
    if isinstance(ours.get("k"), int):
        assert theirs["k"] == ours["k"]


@pytest.mark.parametrize(
    ("text", "key", "line", "said"),
    [
        ("a: 1\nb: 2\na: 3", "a", 3, "line 1"),
        ("on: 1", "on", 1, 'quote it: "on"'),
        ("a: 1\n80: 1", "80", 2, 'quote it: "80"'),
        ("? [a]\n: 1", "?", 1, "string"),
        ("~: 1", "?", 1, "string"),
        ("a: &x {b: 1}\n<<: *x", "<<", 2, "merge"),
    ],
)
def test_faults_of_keys(text: str, key: str, line: int, said: str) -> None:
    found = one(text).value
    assert found is not None
    (fault,) = found.faults
    assert (fault.key, fault.line) == (key, line)
    assert said in fault.text


def test_the_first_of_two_values_stays() -> None:
    assert plain(one("a: 1\na: 2").value) == {"a": 1}


def test_anchors() -> None:
    assert plain(one("a: &x [1, {b: 2}]\nc: *x").value) == {"a": [1, {"b": 2}], "c": [1, {"b": 2}]}


@pytest.mark.parametrize("text", ["a: &x [*x]", "a: *x", "a: &x 1\n...\n---\nb: *x"])
def test_anchors_that_are_not_above(text: str) -> None:
    assert "no anchor x above" in load(text, "f")[-1].error


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    _, said = error("\n".join(lines))
    assert str(VALUES_MAX) in said


def test_the_depth_of_anchors_counts() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, DEPTH_MAX)]
    line, said = error("\n".join(lines))
    assert (line, str(DEPTH_MAX) in said) == (DEPTH_MAX - 1, True)


def test_depth() -> None:
    assert one("[" * DEPTH_MAX + "]" * DEPTH_MAX).value is not None
    assert error("[" * (DEPTH_MAX + 1) + "]" * (DEPTH_MAX + 1))[1].endswith(str(DEPTH_MAX))
    assert "nest" in error("[" * 1_000_000)[1]
    assert error("a: " + "- " * 1_000)[0] == 1


def test_the_number_of_values() -> None:
    assert one("- x\n" * (VALUES_MAX - 1)).value is not None
    line, said = error("- x\n" * VALUES_MAX)
    assert (line, str(VALUES_MAX) in said) == (VALUES_MAX, True)


def test_the_number_of_documents() -> None:
    found = load("---\n" * (DOCUMENTS_MAX + 5), "f")
    assert [str(DOCUMENTS_MAX) in each.error for each in found] == [True]


@pytest.mark.parametrize("text", ["#" * (BYTES_MAX + 1), b"#" * (BYTES_MAX + 1), "ä" * BYTES_MAX])
def test_size(text: str | bytes) -> None:
    assert error(text) == (1, "the text has more than 4 MiB")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: \0", "U+0000"),
        ("a: 1\nb: \ud800", "U+D800"),
        (b"a: 1\nb: \xff", "not UTF-8"),
        (b"\xff\xfea\x00", "not UTF-8"),
        ("a: 1\nb: \x1b", "U+001B"),
        ("\n- ]", "not YAML"),
        ("a:\n\tb: 1\n", "indent it with spaces"),
        ("a:\r\n  \tb: 1\r\n", "indent it with spaces"),
        ("\n- !!python/object/apply:os.system [x]", "is not read"),
        ("\n- !x y", "is not read"),
        ("\n- !!binary eA==", "is not read"),
        ("\n- !!int '5'", "is not read"),
    ],
)
def test_not_read(text: str | bytes, said: str) -> None:
    line, found = error(text)
    assert said in found
    assert line == (1 if isinstance(text, bytes) and text[0] == 255 else 2)


def test_a_byte_order_mark() -> None:
    assert plain(one(b"\xef\xbb\xbfa: 1").value) == {"a": 1}


def test_lists_of_kubernetes() -> None:
    found = load(
        "apiVersion: v1\nkind: List\nmetadata: {}\nitems:\n- a: 1\n"
        "- kind: NetworkPolicyList\n  apiVersion: x/v1\n  items:\n  - b: 2\n---\nc: 3\n",
        "f",
    )
    assert [(e.path, e.kind, e.version, plain(e.value)) for e in found] == [
        ("items[0]", "", "", {"a": 1}),
        ("items[1].items[0]", "NetworkPolicy", "x/v1", {"b": 2}),
        ("", "", "", {"c": 3}),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: List\nitem: []", "item: unknown"),
        ("kind: List\nitems: {}", "items: a list"),
        ("kind: List\nitems: []\nitems: []", "items: the key is there"),
    ],
)
def test_lists_with_mistakes(text: str, said: str) -> None:
    assert said in error(text)[1]


def test_printable() -> None:
    assert printable("a\x1b[31m\ud800\n") == "a\\x1b[31m\\ud800\\n"
    assert len(printable("x" * 1000)) == 80


@settings(deadline=None)
@given(st.one_of(st.text(), st.binary(), st.text(alphabet="a:-[]{}&*!|>'\"#%\n ,?~<\ud800\0")))
def test_garbage_raises_nothing(text: str | bytes) -> None:
    for found in load(text, "f"):
        assert (found.value is None) == bool(found.error)
        assert found.line >= 1
