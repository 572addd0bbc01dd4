# SPDX-License-Identifier: Apache-2.0
"""Keys are X25519's; the file survives crashes and damage."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metropolis.node.core.network.overlay import keys
from metropolis.node.core.network.overlay.device import OverlayError
from metropolis.node.core.network.overlay.keys import DamagedError, KeyFile
from metropolis.node.core.network.overlay.rotation import Stage, State

PAIR, OTHER = keys.generate(), keys.generate()


@pytest.mark.parametrize(
    ("private", "public"),
    [
        # RFC 7748, section 5.2, one iteration, and section 6.1, Bob.
        (
            "0900000000000000000000000000000000000000000000000000000000000000",
            "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079",
        ),
        (
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
        ),
    ],
)
def test_vectors(private: str, public: str) -> None:
    assert keys.public_key(bytes.fromhex(private)).hex() == public


@given(st.binary(min_size=32, max_size=32))
def test_clamping_changes_no_public_key(private: bytes) -> None:
    """X25519 does it anyway; but the kernel returns clamped keys."""
    clamped = keys.clamp(private)
    assert keys.clamp(clamped) == clamped
    assert keys.public_key(clamped) == keys.public_key(private)


def test_keys_differ() -> None:
    assert keys.generate() != keys.generate()
    with pytest.raises(OverlayError, match="31 bytes"):
        keys.public_key(bytes(31))


STATES = [
    State(PAIR, 0, 0),
    State(PAIR, 7, 1_800_000_000),
    State(PAIR, 7, 5, Stage.ANNOUNCED, OTHER, 8),
    State(PAIR, 7, 5, Stage.COMMITTED, OTHER, 9),
]


@pytest.mark.parametrize("state", STATES)
def test_what_is_stored_is_loaded(tmp_path: Path, state: State) -> None:
    file = KeyFile(str(tmp_path / "state"))
    assert file.load() is None
    file.store(STATES[0])
    file.store(state)
    assert KeyFile(str(tmp_path / "state")).load() == state
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert [path.name for path in file.path.parent.iterdir()] == ["key.json"]


def test_grace_starts_over() -> None:
    stored = keys.decode(keys.encode(State(PAIR, 7, 5, Stage.GRACE, OTHER, 8)))
    assert stored == State(PAIR, 7, 5, Stage.ANNOUNCED, OTHER, 8)


def test_a_write_that_was_cut_short_is_written_over(tmp_path: Path) -> None:
    file = KeyFile(str(tmp_path))
    file.store(STATES[0])
    file.path.with_name(".key.json.new").write_bytes(b"{")
    assert file.load() == STATES[0]
    file.store(STATES[1])
    assert file.load() == STATES[1]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "overlay").write_text("")
    with pytest.raises(OverlayError, match=r"write .*key\.json: EEXIST"):
        KeyFile(str(tmp_path)).store(STATES[0])
    with pytest.raises(OverlayError, match=r"read .*key\.json: ENOTDIR"):
        KeyFile(str(tmp_path)).load()


def test_a_damaged_file_is_kept_aside(tmp_path: Path) -> None:
    file = KeyFile(str(tmp_path))
    file.store(STATES[0])
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedError, match=r"key\.json: not JSON") as caught:
        file.load()
    assert whole[20:40].decode() not in str(caught.value)
    aside = file.put_aside()
    assert aside.read_bytes() == whole[: len(whole) // 2]
    assert file.load() is None


WHOLE = keys.encode(STATES[2])


@given(st.one_of(st.binary(max_size=200), st.integers(0, len(WHOLE)).map(lambda n: WHOLE[:n])))
def test_garbage_is_damage(data: bytes) -> None:
    try:
        keys.decode(data)
    except DamagedError:
        return
    assert data.rstrip() == WHOLE.rstrip()


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_a_changed_byte_is_damage_or_another_state(where: int, byte: int) -> None:
    with contextlib.suppress(DamagedError):
        keys.decode(WHOLE[:where] + bytes([byte]) + WHOLE[where + 1 :])


@pytest.mark.parametrize("text", ["[]", "7", "{}", '{"stage": "grace"}', "[" * 3000])
def test_json_of_something_else_is_damage(text: str) -> None:
    with pytest.raises(DamagedError):
        keys.decode(text.encode())
