# SPDX-License-Identifier: Apache-2.0
"""All subjects by name: ours, the floor, peers."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from metropolis.test.bench.attach import peers
from metropolis.test.bench.attach.plugins import Shim
from metropolis.test.bench.attach.results import OURS
from metropolis.test.bench.attach.subjects import Grpc, Subject, connect, floor, inner

type Catalogue = Mapping[str, Callable[[], Subject]]

_BOTH = (4, 6)

OURS_AND_FLOOR = {
    OURS: "Attach and Detach over gRPC, a Python client; the base of `x ours`",
    "grpc ipv4": "the same without IPv6",
    "grpc dual 1 port": "the same as the first with one host port",
    "grpc dual 10 ports": "the same with ten, not successive",
    "grpc dual 1 port by 5000": "with one, while others have 5,000",
    "shim dual": "the exec shim, as a stock runtime runs a CNI plugin",
    "inner dual": "the service's engine, called without RPC",
    "inner ipv4": "the same without IPv6",
    "inner dual 1 port": "with IPv6 and one host port",
    "inner dual 10 ports": "with ten, not successive",
    "floor dual": "the least kernel work of an attach, as encoded messages",
    "floor ipv4": "the same without IPv6",
    "floor same work": "the very messages of our datapath, without the service",
}
PEERS = {
    "ptp": "CNI ptp with host-local; all with IPv4 only unless it says dual",
    "ptp dual no-DAD": "with IPv6, duplicate address detection switched off",
    "ptp dual DAD": "with IPv6, as it comes: it waits for the detection",
    "ptp ipMasq": "masquerading by iptables, which the plugin prefers",
    "ptp ipMasq nft": "masquerading by nft, there being no iptables",
    "bridge ipMasq": "CNI bridge with host-local, by iptables",
    "bridge ipMasq portmap": "containerd's usual chain, no port mapping asked for",
    "bridge ipMasq portmap 1 port": "the same with one port mapping asked for",
    "bridge ipMasq portmap 1 port nft": "the same by nft, there being no iptables",
    "netavark NAT": "Podman's bridge by nft; its caller allocates the address",
    "netavark NAT 1 port": "the same with one port mapping",
}
SUBJECTS = OURS_AND_FLOOR | PEERS


def catalogue(run_dir: Path, shim: Path, installed: peers.Installed | None) -> Catalogue:
    """Return a constructor for each subject. installed None: no peers."""
    found: dict[str, Callable[[], Subject]] = {
        OURS: lambda: Grpc(OURS, _BOTH, run_dir),
        "grpc ipv4": lambda: Grpc("grpc ipv4", (4,), run_dir),
        "grpc dual 1 port": lambda: Grpc("grpc dual 1 port", _BOTH, run_dir, ports=1),
        "grpc dual 10 ports": lambda: Grpc("grpc dual 10 ports", _BOTH, run_dir, ports=10),
        "grpc dual 1 port by 5000": lambda: Grpc(
            "grpc dual 1 port by 5000", _BOTH, run_dir, ports=1, beside=5000
        ),
        "shim dual": lambda: Shim("shim dual", _BOTH, shim, run_dir),
        "inner dual": lambda: inner("inner dual", _BOTH, run_dir),
        "inner ipv4": lambda: inner("inner ipv4", (4,), run_dir),
        "inner dual 1 port": lambda: inner("inner dual 1 port", _BOTH, run_dir, 1),
        "inner dual 10 ports": lambda: inner("inner dual 10 ports", _BOTH, run_dir, 10),
        "floor dual": lambda: floor("floor dual", _BOTH, run_dir, "dual"),
        "floor ipv4": lambda: floor("floor ipv4", (4,), run_dir, "ipv4"),
        "floor same work": lambda: floor("floor same work", _BOTH, run_dir, "same"),
    }
    if installed is not None:
        found |= peers.catalogue(installed)
    return found


@contextlib.contextmanager
def opened(made_by: Catalogue, names: Sequence[str], run_dir: Path) -> Iterator[list[Subject]]:
    """Yield the subjects with these names, each with its own host."""
    with contextlib.ExitStack() as stack:
        subjects = []
        for name in names:
            subject = made_by[name]()
            stack.callback(subject.close)
            subjects.append(subject)
        for subject in subjects:
            subject.ready()
        served = [one for one in subjects if isinstance(one, Grpc)]
        if served:
            stack.callback(connect(served, run_dir).close)
        for subject in subjects:
            subject.fill()
        yield subjects
