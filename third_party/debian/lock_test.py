# SPDX-License-Identifier: Apache-2.0
"""The Debian lock: parsing, resolving, and the one in the tree."""

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from third_party.debian import lock

INDEX = """\
Package: linux-image-cloud-amd64
Version: 7.2-1
Depends: linux-base-9 (= 7.2-1), linux-image-9-cloud (= 7.2-1)

Package: linux-image-9-cloud
Version: 7.2-1
Pre-Depends: libc6 (>= 2.34)
Depends: dracut | initramfs-tools (>= 0.1),
 ignored-continuation
Description: Linux
 a: long text
Filename: ./pool/main/l/linux/linux-image-9-cloud_7.2-1_amd64.deb
SHA256: aa
Size: 12

Package: linux-image-9-cloud
Version: 7.1-1
"""


def test_wanted() -> None:
    text = "# c\n\nlibstdc++6 # why\nlinux = linux-image-cloud-amd64 > linux-image-* > x*\n"
    assert lock.parse_wanted(text) == [
        lock.Wanted("libstdc++6", ("libstdc++6",)),
        lock.Wanted("linux", ("linux-image-cloud-amd64", "linux-image-*", "x*")),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Two Words", "packages.in:1: 'Two Words'"),
        ("a1\n../x", "packages.in:2: '../x'"),
        ("a1\na1", "packages.in:2: a1 is there twice"),
        ("a1 = ", "packages.in:1: ''"),
        ("a1 = b1 > ", "packages.in:1: 'b1 >'"),
        ("a1 = src:b1 > c1", "packages.in:1: 'src:b1 > c1'"),
        ("src:b1", "packages.in:1: 'src:b1'"),
    ],
)
def test_wanted_refuses(text: str, says: str) -> None:
    with pytest.raises(lock.LockError, match="^" + re.escape(says)):
        lock.parse_wanted(text)


def test_resolve_follows_the_metapackage() -> None:
    index = lock.parse_index(INDEX)
    pin = lock.resolve(lock.Wanted("linux", ("linux-image-cloud-amd64", "linux-image-*")), index)
    assert pin == lock.Pin(
        "linux-image-9-cloud",
        "7.2-1",
        "pool/main/l/linux/linux-image-9-cloud_7.2-1_amd64.deb",
        "aa",
        12,
    )


SOURCES = f"""\
Package: cni
Version: 1.3.0-2
Directory: pool/main/c/cni
Files:
 cc 101944 cni_1.3.0.orig.tar.xz
Checksums-Sha256:
 {"d" * 64} 1724 cni_1.3.0-2.dsc
 {"a" * 64} 101944 cni_1.3.0.orig.tar.xz
 {"e" * 64} 3968 cni_1.3.0-2.debian.tar.xz
"""


def test_source() -> None:
    (wanted,) = lock.parse_wanted("cni-source = src:cni")
    older = SOURCES.replace("1.3.0", "1.2.0")
    for text in (SOURCES, f"{older}\n{SOURCES}\n"):
        assert lock.resolve_source(wanted, text) == lock.Pin(
            "src:cni", "1.3.0-2", "pool/main/c/cni/cni_1.3.0.orig.tar.xz", "a" * 64, 101944
        )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "src:cni: not in the archive's index"),
        (SOURCES.replace("Package: cni", "Package: x"), "src:cni: not in the archive's index"),
        (SOURCES.replace("orig.tar.xz", "orig.tar.lz"), "src:cni: 0 upstream tars"),
        (SOURCES.replace("debian.tar", "orig.tar"), "src:cni: 2 upstream tars"),
    ],
)
def test_source_refuses(text: str, says: str) -> None:
    with pytest.raises(lock.LockError, match=says):
        lock.resolve_source(lock.Wanted("x", ("src:cni",)), text)


def test_dependencies() -> None:
    deps = lock.dependencies(lock.parse_index(INDEX)["linux-image-9-cloud"])
    assert deps == ["libc6", "dracut", "initramfs-tools"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (("absent",), "absent: not in the archive's index"),
        (("linux-image-cloud-amd64", "x*"), "x: 0 dependencies of linux-image-cloud-amd64"),
        (("linux-image-cloud-amd64", "linux-*"), "x: 2 dependencies"),
        (("linux-image-cloud-amd64",), "linux-image-cloud-amd64: .* no Filename"),
    ],
)
def test_resolve_refuses(path: tuple[str, ...], says: str) -> None:
    with pytest.raises(lock.LockError, match=says):
        lock.resolve(lock.Wanted("x", path), lock.parse_index(INDEX))


def test_lock_round_trip_and_changes() -> None:
    one, two = lock.Pin("a", "1", "f", "aa", 1), lock.Pin("a", "2", "f", "bb", 1)
    assert lock.parse_lock(lock.render_lock({"b": two, "a": one})) == {"a": one, "b": two}
    assert list(lock.changes({"a": one, "b": one}, {"a": two, "c": one})) == [
        "  a 1 -> 2",
        "- b 1",
        "+ c 1",
    ]


@given(st.text())
def test_damaged_files_are_refused_clearly(text: str) -> None:
    for parse in (lock.parse_wanted, lock.parse_lock):
        with contextlib.suppress(lock.LockError):
            parse(text)
    lock.parse_index(text)


def test_lock_in_the_tree_fits_packages_in() -> None:
    folder = Path(__file__).parent
    pins = lock.parse_lock((folder / "packages.lock").read_text())
    wanted = {item.name for item in lock.parse_wanted((folder / "packages.in").read_text())}
    assert wanted == pins.keys(), "run ./bazelw run //third_party/debian:update"
    assert lock.render_lock(pins) == (folder / "packages.lock").read_text()
    for pin in pins.values():
        assert re.fullmatch(r"[0-9a-f]{64}", pin.sha256), pin
        assert pin.filename.startswith("pool/"), pin
