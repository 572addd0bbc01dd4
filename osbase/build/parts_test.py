# SPDX-License-Identifier: Apache-2.0
"""Kernel module closures, OCI layouts and busybox links."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from osbase.build import applets, kmodules, oci, oci_archive
from osbase.build.tree import Data, Tree, TreeError, write_tar


def module(depends: str) -> bytes:
    return b"\x7fELF..\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


MODULES = {
    "wireguard": module("udp_tunnel,curve25519"),
    "udp_tunnel": module(""),
    "curve25519": module(""),
    "virtio_rng": module("rng-core"),
    "broken": module("gone"),
}


def test_closure() -> None:
    found = kmodules.closure(["wireguard", "virtio-rng", "rng_core"], MODULES, {"rng_core"})
    assert found == {"wireguard", "udp_tunnel", "curve25519", "virtio_rng"}


@pytest.mark.parametrize(
    ("asked", "says"),
    [("netkat", r"module netkat \(asked for\)"), ("broken", r"module gone \(needed by broken\)")],
)
def test_unknown_modules_are_refused(asked: str, says: str) -> None:
    with pytest.raises(TreeError, match=says):
        kmodules.closure([asked], MODULES, set())


def test_modules_of_the_real_kernel(tmp_path: Path) -> None:
    """modprobe itself finds every dependency, also through aliases."""
    tars = os.environ["KERNEL_TARS"].split()
    out = tmp_path / "modules.tar"
    args = [word for tar in tars for word in ("--tar", tar)]
    for name in ("wireguard", "nft-fib-inet", "virtio_console"):  # the last is built in
        args += ["--module", name]
    assert kmodules.main([str(out), *args]) == 0
    with tarfile.open(out) as tar:
        tar.extractall(tmp_path, filter="data")
    (version,) = (path.name for path in (tmp_path / "usr/lib/modules").iterdir())
    shutil.move(tmp_path / "usr/lib", tmp_path / "lib")

    shutil.copy("/usr/bin/busybox", tmp_path)
    # busybox looks in the directory of the running kernel.
    (tmp_path / "lib/modules" / version).rename(tmp_path / "lib/modules" / os.uname().release)

    def needs(name: str) -> set[str]:
        command = ["unshare", "-Ur", "chroot", str(tmp_path), "/busybox", "modprobe", "-D", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return {Path(line.split()[1]).stem for line in done.stdout.splitlines() if line}

    assert {"wireguard", "udp_tunnel"} <= needs("rtnl-link-wireguard")
    assert {"nft_fib_inet", "nf_tables", "nft_fib_ipv6"} <= needs("nft-expr-1-fib")


def test_a_tree_without_modules_is_refused() -> None:
    with pytest.raises(TreeError, match="no kernel modules"):
        kmodules.build(Tree(), ["veth"])


def test_oci_layout_is_consistent() -> None:
    tree = oci.layout([Data(b"layer1"), Data(b"layer2")], "localhost/x:1", {"Cmd": ["sh"]})

    def blob(descriptor: dict[str, object]) -> bytes:
        entry = tree.get("/blobs/" + str(descriptor["digest"]).replace(":", "/"))
        assert entry is not None
        data = entry.content.read()
        assert descriptor["digest"] == "sha256:" + hashlib.sha256(data).hexdigest()
        assert descriptor["size"] == len(data)
        return data

    index_file = tree.get("/index.json")
    assert index_file is not None
    (top,) = json.loads(index_file.content.read())["manifests"]
    assert set(top["annotations"].values()) == {"localhost/x:1"}
    manifest = json.loads(blob(top))
    assert [blob(layer) for layer in manifest["layers"]] == [b"layer1", b"layer2"]
    config = json.loads(blob(manifest["config"]))
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    assert config["config"] == {"Cmd": ["sh"]}


def write_image(path: Path, layer: bytes, tag: str) -> Path:
    with path.open("wb") as out:
        write_tar(oci.layout([Data(b"shared"), Data(layer)], tag, {}), out)
    return path


def test_an_archive_has_all_images(tmp_path: Path) -> None:
    tags = ["localhost/a:1", "localhost/b:2"]
    images = [
        write_image(tmp_path / f"{number}.tar", b"%d" % number, tag)
        for number, tag in enumerate(tags)
    ]
    tree = oci_archive.archive(images)
    index_file, layout_file = tree.get("/index.json"), tree.get("/oci-layout")
    assert index_file is not None
    assert layout_file is not None
    manifests = json.loads(index_file.content.read())["manifests"]
    assert [one["annotations"]["io.containerd.image.name"] for one in manifests] == tags
    blobs = {entry.path for entry in tree if entry.path.startswith("/blobs/sha256/")}
    # Each has a manifest, a configuration and a layer; they share one layer.
    assert len(blobs) == 2 * 3 + 1
    assert {"/blobs/" + one["digest"].replace(":", "/") for one in manifests} <= blobs


def test_what_is_no_image_is_no_part_of_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with path.open("wb") as out:
        write_tar(Tree(), out)
    with pytest.raises(TreeError, match=r"x\.tar: no /index\.json"):
        oci_archive.archive([path])


def test_applets() -> None:
    tree = applets.links(
        ["bin/sh\n", "usr/bin/env", "sbin/init", "usr/bin/dpkg", "bin/busybox", ""]
    )
    found = {entry.path: entry.target for entry in tree if entry.target}
    assert found == dict.fromkeys(
        ("/usr/bin/env", "/usr/bin/sh", "/usr/sbin/init"), "/usr/bin/busybox"
    )
    assert not any(re.search("dpkg|rpm", path) for path in found)
