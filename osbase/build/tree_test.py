# SPDX-License-Identifier: Apache-2.0
"""Trees: layers, exclusion, links, and the archives made of them."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.build.tree import Data, Kind, Tree, TreeError, matcher, normal, write_cpio, write_tar


def make_tar(path: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    """Make a tar of files, given as (name, content), and of other members."""
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size, info.mode, info.uid, info.mtime = len(member[1]), 0o755, 1000, 12345
            tar.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o755
    return info


def paths(tree: Tree) -> list[str]:
    return [entry.path for entry in tree]


def content(tree: Tree, path: str) -> bytes:
    entry = tree.get(path)
    assert entry is not None
    return entry.content.read()


def test_later_layers_shadow_and_parents_come_first(tmp_path: Path) -> None:
    tree = Tree()
    tree.add_tar(make_tar(tmp_path / "a.tar", ("./usr/bin/x", b"1"), ("./usr/bin/y", b"2")), "a")
    tree.add_tar(make_tar(tmp_path / "b.tar", ("usr/bin/x", b"3")), "b")
    assert paths(tree) == ["/usr", "/usr/bin", "/usr/bin/x", "/usr/bin/y"]
    assert content(tree, "/usr/bin/x") == b"3"
    entry = tree.get("/usr/bin/x")
    assert entry
    assert entry.layer == "b"
    assert entry.mode == 0o755


def test_a_link_to_a_directory_is_followed(tmp_path: Path) -> None:
    tree = Tree()
    tree.add_symlink("/bin", "usr/bin", "image")
    tree.add_tar(
        make_tar(tmp_path / "a.tar", special("./bin", tarfile.DIRTYPE), ("./bin/sh", b"#")), "a"
    )
    bin_entry = tree.get("/bin")
    assert bin_entry
    assert bin_entry.kind is Kind.SYMLINK
    assert paths(tree) == ["/bin", "/usr", "/usr/bin", "/usr/bin/sh"]


def test_hard_links_become_files(tmp_path: Path) -> None:
    tree = Tree()
    tree.add_tar(make_tar(tmp_path / "a.tar", ("a", b"1"), special("b", tarfile.LNKTYPE, "a")), "a")
    assert content(tree, "/b") == b"1"


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (special("dev/null", tarfile.CHRTYPE), "neither file, directory nor link"),
        (special("b", tarfile.LNKTYPE, "absent"), "hard link to absent"),
        (special("../etc/passwd", tarfile.DIRTYPE), r"'\.\.' in a path"),
    ],
)
def test_tars_that_do_not_fit_are_refused(
    tmp_path: Path, member: tarfile.TarInfo, says: str
) -> None:
    with pytest.raises(TreeError, match=says):
        Tree().add_tar(make_tar(tmp_path / "a.tar", member), "a")


def test_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(TreeError, match=r"a\.tar"):
        Tree().add_tar(tmp_path / "a.tar", "a")


def test_conflicts_are_refused() -> None:
    tree = Tree()
    tree.add_file("/a/b", Data(b""), "one")
    with pytest.raises(TreeError, match=r"/a: file of two would hide .* of one"):
        tree.add_file("/a", Data(b""), "two")
    with pytest.raises(TreeError, match=r"/a/b: a file of one, but two has files below it"):
        tree.add_file("/a/b/c", Data(b""), "two")
    tree.add_symlink("/loop", "loop", "one")
    with pytest.raises(TreeError, match="too many levels"):
        tree.add_file("/loop/x", Data(b""), "two")


def test_prune_keeps_what_was_asked_for(tmp_path: Path) -> None:
    tree = Tree()
    tree.add_tar(make_tar(tmp_path / "a.tar", special("a/b/c", tarfile.DIRTYPE)), "a")
    tree.add_dir("/run", 0o755, "image")
    tree.prune()
    assert paths(tree) == ["/run"]


@pytest.mark.parametrize(
    ("pattern", "path", "hit"),
    [
        ("/usr/share/doc", "/usr/share/doc", True),
        ("/usr/share/doc", "/usr/share/doc/x/y", True),
        ("/usr/share/doc", "/usr/share/docs", False),
        ("/usr/*/doc", "/usr/a/doc/z", True),
        ("/usr/*/doc", "/usr/a/b/doc", False),
        ("/usr/**/doc", "/usr/a/b/doc", True),
        ("/lib/_test*.so", "/lib/_testcapi.x.so", True),
        ("/lib/.*", "/lib/.hidden", True),
        ("/a", "/b\n/a", False),
    ],
)
def test_exclude(pattern: str, path: str, hit: bool) -> None:
    assert matcher([pattern, "/never"])(path) is hit


def test_exclude_wants_absolute_patterns() -> None:
    with pytest.raises(TreeError, match="'doc'"):
        matcher(["doc"])


@given(st.text("ab/.", max_size=12))
def test_normal_is_stable(path: str) -> None:
    try:
        once = normal(path)
    except TreeError:
        return
    assert normal(once) == once
    assert once.startswith("/")
    assert "//" not in once


def sample() -> Tree:
    tree = Tree()
    tree.add_file("/bin/x", Data(b"hello"), "a", 0o755)
    tree.add_symlink("/bin/y", "x", "a")
    tree.add_dir("/tmp", 0o1777, "a")
    return tree


def test_tar_depends_on_the_tree_alone() -> None:
    out = io.BytesIO()
    write_tar(sample(), out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        members = {m.name: m for m in tar}
        assert list(members) == ["bin", "bin/x", "bin/y", "tmp"]
        assert {(m.uid, m.gid, m.mtime) for m in members.values()} == {(0, 0, 0)}
        assert members["tmp"].mode == 0o1777
        assert members["bin/x"].mode == 0o755
        assert members["bin/y"].linkname == "x"
    again = io.BytesIO()
    write_tar(sample(), again)
    assert again.getvalue() == out.getvalue()


def test_cpio_is_what_cpio_reads() -> None:
    out = io.BytesIO()
    write_cpio(sample(), out)
    listing = subprocess.run(
        ["cpio", "--list", "--verbose", "--numeric-uid-gid", "--quiet"],
        input=out.getvalue(),
        capture_output=True,
        check=True,
    ).stdout.decode()
    rows = [(line.split()[0], line.split(None, 8)[8]) for line in listing.splitlines()]
    assert rows == [
        ("drwxr-xr-x", "bin"),
        ("-rwxr-xr-x", "bin/x"),
        ("lrwxrwxrwx", "bin/y -> x"),
        ("drwxrwxrwt", "tmp"),
    ]
