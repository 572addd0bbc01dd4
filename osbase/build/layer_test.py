# SPDX-License-Identifier: Apache-2.0
"""The command of the image rules, with the real mkfs.erofs; byte code."""

import contextlib
import importlib.util
import json
import marshal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osbase.build import bytecode, erofs, layer, report
from osbase.build.tree import Data, Tree


def write_spec(folder: Path, **changes: Any) -> Path:
    (folder / "hello.py").write_text("GREETING = 'hello'\n")
    (folder / "big").write_bytes(b"0123456789abcdef" * 65536)
    files = [
        {"path": "/usr/lib/app/hello.py", "source": str(folder / "hello.py"), "mode": 0o644},
        {"path": "/usr/bin/big", "source": str(folder / "big"), "mode": 0o755},
    ]
    many = [
        {"path": f"/many/a-rather-long-name-of-a-file-{i:04}", "source": "/dev/null", "mode": 0o600}
        for i in range(300)
    ]
    spec: dict[str, Any] = {
        "tars": [],
        "exclude": [],
        "files": files + many,
        "symlinks": {"/bin": "usr/bin"},
        "dirs": {"/tmp": "1777"},
        "bytecode": True,
    }
    (folder / "spec.json").write_text(json.dumps(spec | changes))
    return folder / "spec.json"


def test_erofs_holds_the_tree(tmp_path: Path) -> None:
    spec, out, manifest = write_spec(tmp_path), tmp_path / "a.erofs", tmp_path / "manifest"
    assert layer.main(["erofs", str(spec), str(out), "--manifest", str(manifest)]) == 0
    nodes = {node.path: node for node in erofs.Image(out).walk()}
    listed = {row[0]: row for row in json.loads(manifest.read_text())}
    assert nodes.keys() == listed.keys()
    for path, kind, mode, size, _ in listed.values():
        node = nodes[path]
        assert stat.S_IMODE(node.mode) == mode, path
        if kind == "file":
            assert node.size == size, path
    assert stat.S_ISLNK(nodes["/bin"].mode)
    assert 0 < nodes["/usr/bin/big"].stored < nodes["/usr/bin/big"].size / 10
    extracted = tmp_path / "extracted"
    subprocess.run(["fsck.erofs", "--no-preserve", f"--extract={extracted}", out], check=True)
    assert (extracted / "usr/bin/big").read_bytes() == (tmp_path / "big").read_bytes()


def test_equal_specs_give_equal_images(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    for format in ("tar", "initramfs", "erofs"):
        outs = [tmp_path / f"{format}{i}" for i in range(2)]
        for out in outs:
            assert layer.main([format, str(spec), str(out)]) == 0
        assert outs[0].read_bytes() == outs[1].read_bytes(), format


def test_failures_name_the_output_and_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = write_spec(tmp_path, tars=[{"path": str(tmp_path / "absent.tar"), "layer": "x"}])
    assert layer.main(["erofs", str(spec), str(tmp_path / "out")]) == 1
    assert "absent.tar" in capsys.readouterr().err
    spec = write_spec(tmp_path)
    assert layer.main(["erofs", str(spec), "/proc/no", "--compression", "lz4hc"]) == 1
    assert "mkfs.erofs" in capsys.readouterr().err
    assert layer.main(["erofs", str(spec), str(tmp_path / "o"), "--compression", "rot13"]) == 1
    assert "rot13" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "line"),
    [("x = 1\ndef f(:\n", 2), ("x = (\n", 1), ("if x:\npass\n", 2), ("x = '\0'\n", 1)],
)
def test_a_file_that_must_compile_and_does_not_is_named_with_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: int
) -> None:
    (tmp_path / "wrong.py").write_text(text)
    source = str(tmp_path / "wrong.py")
    files = [{"path": "/usr/lib/app/wrong.py", "source": source, "mode": 0o644}]
    out = tmp_path / "out.tar"
    for must_compile, status in [([], 0), (["/usr/lib/other/"], 0), (["/usr/lib/app/"], 1)]:
        spec = write_spec(tmp_path, files=files, must_compile=must_compile)
        assert layer.main(["tar", str(spec), str(out)]) == status
        assert (f"{source}:{line}: " in capsys.readouterr().err) == bool(status)


def test_byte_code_is_loaded_without_its_source(tmp_path: Path) -> None:
    tree = Tree()
    tree.add_file("/m/good.py", Data(b"VALUE = {'a', 'b'}\n"), "x")
    tree.add_file("/m/bad.py", Data(b"print 'python 2'\n"), "x")
    tree.add_file("/m/done.py", Data(b"A = 1\n"), "x")
    tree.add_file(bytecode.pyc_path("/m/done.py"), Data(b"kept"), "x")
    assert bytecode.add_bytecode(tree) == 1
    entry = tree.get(bytecode.pyc_path("/m/good.py"))
    assert entry is not None
    data = entry.content.read()
    assert data[:4] == importlib.util.MAGIC_NUMBER
    assert data[4:8] == b"\1\0\0\0"  # a hash, not to be checked
    code = marshal.loads(data[16:])
    assert code.co_filename == "/m/good.py"
    (tmp_path / "good.pyc").write_bytes(data)
    run = subprocess.run(
        [sys.executable, "-c", "import good; print(sorted(good.VALUE))"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    assert run.stdout == b"['a', 'b']\n"


@given(st.binary(max_size=4096))
def test_garbage_is_no_image(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("x") / "image"
    path.write_bytes(data)
    with pytest.raises(erofs.ErofsError):
        list(erofs.Image(path).walk())


def test_damaged_image_is_an_error_or_a_listing(tmp_path: Path) -> None:
    spec, out = write_spec(tmp_path), tmp_path / "a.erofs"
    assert layer.main(["erofs", str(spec), str(out)]) == 0
    whole = out.read_bytes()
    for at in range(1152, 8192, 61):
        out.write_bytes(
            whole[:at] + bytes(byte ^ 0x5A for byte in whole[at : at + 8]) + whole[at + 8 :]
        )
        with contextlib.suppress(erofs.ErofsError):
            list(erofs.Image(out).walk())


def test_report_sums_up() -> None:
    nodes = [
        erofs.Node("/usr", 0o040755, 4096, 4096),
        erofs.Node("/usr/bin/a", 0o100755, 100, 50),
        erofs.Node("/usr/bin/b", 0o100755, 10, 5),
        erofs.Node("/etc/c", 0o100644, 7, 7),
    ]
    tables = report.report(1000, nodes, {"/usr/bin/a": "one", "/usr/bin/b": "one", "/etc/c": "two"})
    assert (tables["metadata"], tables["unpacked"], tables["files"]) == (938, 117, 3)
    assert tables["layers"] == [report.Row("one", 55, 110, 2), report.Row("two", 7, 7, 1)]
    assert [row.name for row in tables["directories"]] == ["/usr/bin", "/etc"]
    text = report.render(tables, 1)
    assert "one" in text
    assert "two" not in text
    assert "(1 more)" in text


@pytest.mark.parametrize(
    ("path", "shown"),
    [("/a", "/"), ("/a/b", "/a"), ("/a/b/c/d", "/a/b/c"), ("/a/b/c/d/e/f", "/a/b/c")],
)
def test_folder(path: str, shown: str) -> None:
    assert report.folder(path) == shown
