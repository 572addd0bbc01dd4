# SPDX-License-Identifier: Apache-2.0
"""What the node image must contain, must not contain, and its size limit."""

import functools
import os
import re
import stat
import subprocess
import tomllib
from compression import zstd
from pathlib import Path, PurePosixPath

import pytest

from osbase.build.erofs import Image, Node

IMAGE, INITRAMFS, KERNEL = (Path(os.environ[name]) for name in ("IMAGE", "INITRAMFS", "KERNEL"))
MB = 1_000_000


@functools.cache
def nodes() -> dict[str, Node]:
    return {node.path: node for node in Image(IMAGE).walk()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Extract the image; return its files."""
    return extract(IMAGE, tmp_path_factory.mktemp("image"))


def extract(image: Path, folder: Path) -> Path:
    """Extract an image's files below the folder; return their root."""
    root = folder / "root"
    command = ["fsck.erofs", "--no-preserve", f"--extract={root}", str(image)]
    subprocess.run(command, check=True, capture_output=True)
    return root


def test_sizes() -> None:
    assert IMAGE.stat().st_size <= 120 * MB
    assert INITRAMFS.stat().st_size <= 4 * MB
    assert KERNEL.stat().st_size <= 20 * MB


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("package managers", r".*/(apt|apt-get|dpkg|dpkg-deb|rpm|pip|pip3|ensurepip)(/.*)?"),
        ("perl", r".*/perl[^/]*(/.*)?"),
        ("CNI plugins", r".*/(bridge-cni|host-local|loopback|portmap|ptp)|/usr/lib/cni/.*|/opt/.*"),
        # CNI: anything that a runtime would read, execute or write. What is
        # left is the protocol's Python in node core, for runtimes built
        # elsewhere.
        ("CNI", r"(?!/usr/lib/metropolis/)(.*/cni([/.].*)?|.*\.conflist|.*/cniproxy)"),
        ("documentation", r"/usr/share/(doc|man|info|locale|lintian|bash-completion)(/.*)?"),
        ("development files", r".*\.(a|h|pyi|pyx|pxd)|/usr/include/.*"),
        ("tests", r"/usr/lib/.*/(tests?|conftest\.py|[^/]*_test\.py)(/.*)?"),
        ("systemd units", r".*/systemd(/.*)?"),
        ("ways in of the development image", r"/tools(/.*)?|/etc/sv/(agent|console)(/.*)?"),
        ("anything named after it", r"/usr/lib(exec)?/.*(development|osbase/test/).*"),
        ("servers of logins", r".*/(sshd|dropbear|telnetd|[am]?getty|login|su|httpd)"),
        ("debuggers", r".*/(_pyrepl|py-spy|gdb|strace)(/.*)?"),
        ("set-uid programs", None),
    ],
)
def test_is_absent(what: str, pattern: str | None) -> None:
    if pattern is None:
        found = [n.path for n in nodes().values() if n.mode & (stat.S_ISUID | stat.S_ISGID)]
    else:
        found = [path for path in nodes() if re.fullmatch(pattern, path)]
    assert not found, f"{what} in the image: {found[:10]}"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/inittab",
        "/etc/metropolis/node.textproto",
        "/etc/resolv.conf",
        "/etc/sv/containerd/run",
        "/etc/sv/node-core/run",
        "/usr/bin/containerd",
        "/usr/bin/containerd-shim-runc-v2",
        "/usr/bin/ctr",
        "/usr/bin/ip",
        "/usr/bin/metroctl",
        "/usr/bin/python3",
        "/usr/bin/runsvdir",
        "/usr/lib/metropolis/metropolis/cli/metroctl/main.py",
        "/usr/lib/metropolis/metropolis/node/core/main.py",
        "/usr/lib/metropolis/site-packages/grpc/__init__.py",
        "/usr/sbin/init",
        "/usr/sbin/modprobe",
        "/usr/sbin/nft",
        "/usr/sbin/runc",
        "/usr/share/metropolis/images/preloaded.tar",
    ],
)
def test_is_there(path: str) -> None:
    assert path in nodes()


@pytest.mark.parametrize("path", ["/dev", "/proc", "/run", "/sys", "/tmp", "/var"])
def test_mount_points_are_empty(path: str) -> None:
    assert nodes()[path].is_dir
    assert not [other for other in nodes() if other.startswith(path + "/")]


def test_services_are_those_that_a_node_needs(root: Path) -> None:
    """A new one is a decision: whatever runs can be attacked."""
    found = {path.split("/")[3] for path in nodes() if path.startswith("/etc/sv/")}
    assert found == {"acpi", "containerd", "node-core", "preload", "time"}
    started = [
        line.split(":")[3].split()[0]
        for line in (root / "etc/inittab").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert all(one.startswith(("/usr/libexec/metropolis/", "/usr/bin/runsvdir", "/usr/sbin/power"))
               for one in started), started  # fmt: skip
    assert "VARIANT" not in (root / "etc/os-release").read_text()


def test_a_development_image_says_so(tmp_path: Path) -> None:
    image = Path(os.environ["DEV_IMAGE"])
    found = {node.path for node in Image(image).walk()}
    assert {"/tools", "/etc/sv/agent/run"} <= found
    library = "/usr/lib/python3.14"
    debugging = ("pdb.py", "_pyrepl/readline.py", "_pyrepl/unix_console.py", "asyncio/tools.py")
    assert {f"{library}/{name}" for name in debugging} <= found
    assert any(path.startswith(f"{library}/lib-dynload/_remote_debugging.") for path in found)
    root = extract(image, tmp_path)
    assert "\nVARIANT_ID=development\n" in (root / "etc/os-release").read_text()


def test_libraries_are_complete(root: Path) -> None:
    """Every program and library finds the libraries it is linked to."""
    names = {PurePosixPath(path).name for path in nodes()}
    programs = []
    for node in nodes().values():
        if stat.S_ISREG(node.mode) and not node.path.endswith(".ko"):
            with Path(str(root) + node.path).open("rb") as f:
                if f.read(4) == b"\x7fELF":
                    programs.append(str(root) + node.path)
    assert len(programs) > 50
    listing = subprocess.run(
        ["readelf", "--dynamic", *programs], capture_output=True, text=True, check=True
    ).stdout
    missing = {}
    program = ""
    for line in listing.splitlines():
        if line.startswith("File: "):
            program = line.removeprefix("File: " + str(root))
        match = re.search(r"\(NEEDED\).*\[(.*)\]", line)
        if match and match[1] not in names:
            missing[program] = match[1]
    assert not missing


def test_links_lead_somewhere(root: Path) -> None:
    dangling = []
    for node in nodes().values():
        if stat.S_ISLNK(node.mode):
            link = Path(str(root) + node.path)
            target = os.readlink(link)
            if target.startswith(("/proc/", "/run/")):
                continue
            inside = root / target[1:] if target.startswith("/") else link.parent / target
            if not inside.exists():
                dangling.append(f"{node.path} -> {target}")
    assert not dangling


def test_scripts_have_their_interpreter_and_parse(root: Path) -> None:
    scripts = [
        path
        for path, node in nodes().items()
        if re.match(r"/(etc/sv/[^/]+/run|usr/libexec/metropolis/|etc/acpi/.*/)", path)
        and stat.S_ISREG(node.mode)
    ]
    assert len(scripts) >= 9
    for path in scripts:
        assert nodes()[path].mode & 0o111, f"{path} cannot be executed"
        file = Path(str(root) + path)
        assert file.read_text().startswith("#!/bin/sh\n"), path
        subprocess.run(["busybox", "sh", "-n", str(file)], check=True)


def test_python_code_is_compiled() -> None:
    """On a read-only root a missing .pyc is compiled at every start."""
    sources = [
        PurePosixPath(path)
        for path, node in nodes().items()
        if path.endswith(".py") and stat.S_ISREG(node.mode)
    ]
    missing = [
        str(path)
        for path in sources
        if str(path.parent / "__pycache__" / f"{path.stem}.cpython-314.pyc") not in nodes()
    ]
    assert len(sources) > 300
    assert not missing


def test_containerd_is_told_what_is_there(root: Path) -> None:
    config = tomllib.loads((root / "etc/containerd/config.toml").read_text())
    plugins = config["plugins"]
    cri = plugins["io.containerd.cri.v1.runtime"]
    runc = cri["containerd"]["runtimes"]["runc"]["options"]["BinaryName"]
    assert runc in nodes()
    assert plugins["io.containerd.cri.v1.images"]["pinned_images"]["sandbox"] == (
        "localhost/pause:latest"
    )
    assert (cri["cni"]["conf_dir"], cri["cni"]["bin_dirs"]) == ("", [])
    known = subprocess.run(
        [root / "usr/bin/containerd", "config", "default"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for plugin in plugins:
        assert plugin in tomllib.loads(known)["plugins"], plugin


def test_initramfs_has_init_and_what_mounts_the_root(tmp_path: Path) -> None:
    archive = zstd.decompress(INITRAMFS.read_bytes())
    command = ["cpio", "--list", "--quiet"]
    names = subprocess.run(command, input=archive, capture_output=True, check=True).stdout
    found = {PurePosixPath(name).name for name in names.decode().splitlines()}
    assert found >= {"init", "busybox", "modprobe", "erofs.ko", "virtio_blk.ko", "modules.dep"}


def test_kernel_is_one() -> None:
    data = KERNEL.read_bytes()
    assert data[0x202:0x206] == b"HdrS"  # boot protocol, Documentation/arch/x86/boot.rst
