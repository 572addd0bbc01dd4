# SPDX-License-Identifier: Apache-2.0
"""The packages that are, and are not, linked into the built programs."""

import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

PROGRAMS = Path(os.environ["PROGRAMS"]).parent
# CNI's library and what else of CNI go-cni is made of. Its plugins' package
# for namespaces stays: containerd itself makes them with it.
CNI = b"github.com/containernetworking/cni/"
GO_CNI = "github.com/containerd/go-cni"
OURS = b"/metropolis.node.core.network.workloads.WorkloadNetworking/Attach"


def packages() -> dict[str, str]:
    """Return the packages in containerd and ctr: import path to folder."""
    lines = Path(os.environ["PACKAGES"]).read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def test_packages() -> None:
    found = packages()
    assert "github.com/containerd/containerd/v2/internal/cri/server" in found
    assert found[GO_CNI] == f"GOPATH/src/{GO_CNI}"
    assert [name for name in found if name.startswith(CNI.decode())] == []
    ours = [name for name, folder in found.items() if folder.startswith("GOPATH/")]
    assert sorted(ours) == [GO_CNI, "metropolis/node/core/network/workloads/spec"]


def test_cniproxy_has_what_is_used_and_no_more() -> None:
    """It exports exactly these names; the compiler also checks for missing
    ones.
    """
    used: set[str] = set()
    for name, folder in packages().items():
        if name.startswith("github.com/containerd/containerd/v2/"):
            for file in Path(folder).glob("*.go"):
                text = file.read_text()
                if f'"{GO_CNI}"' in text and not file.name.endswith("_test.go"):
                    used.update(re.findall(r"\b(?:go)?cni\.([A-Z]\w*)", text))
    exported: set[str] = set()
    for path in os.environ["CNIPROXY"].split():
        text = Path(path).read_text()
        exported.update(re.findall(r"^(?:func|type) ([A-Z]\w*)", text, re.MULTILINE))
        exported.update(re.findall(r"^\t(Err\w+) += errors", text, re.MULTILINE))
    assert used - exported == set()
    # Types of results, and functions that classify errors.
    assert exported - used == {
        "Config",
        "ConfigResult",
        "ErrCNINotInitialized",
        "ErrInvalidConfig",
        "ErrInvalidResult",
        # What other runtimes may ask of an interface.
        "Route",
        "WithArgs",
        "WithMTU",
        "WithRoutes",
    }


@pytest.mark.parametrize("name", ["containerd", "ctr"])
def test_no_cni_inside(name: str) -> None:
    program = (PROGRAMS / name).read_bytes()
    assert OURS in program
    assert CNI not in program
    with tarfile.open(os.environ["STOCK"]) as archive:
        stock = archive.extractfile(f"./usr/bin/{name}")
        assert stock is not None
        # The same search finds it where it is linked in.
        assert CNI in stock.read()


@pytest.mark.parametrize("name", ["containerd", "containerd-shim-runc-v2", "ctr"])
def test_programs_run(name: str) -> None:
    """They are static, without paths of the build machine."""
    flag = "-v" if name == "containerd-shim-runc-v2" else "--version"
    path = PROGRAMS / name
    told = subprocess.run([path, flag], capture_output=True, text=True, check=True, env={})
    assert "+cniproxy" in told.stdout
    program = path.read_bytes()
    assert b"ld-linux" not in program
    assert b"/gopath/" not in program
