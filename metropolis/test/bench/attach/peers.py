# SPDX-License-Identifier: Apache-2.0
"""The peers of our service, from Debian packages: unpacked for one run.

They are CNI's plugins and netavark in the versions of third_party/debian. The
iptables that Debian's alternatives choose (iptables-nft) is first in their
PATH, so they find the back end that they prefer on a container host. Only they
see these programs and libraries.
"""

import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from metropolis.test.bench.attach.plugins import Cni, Netavark, Settings
from metropolis.test.bench.attach.subjects import Subject, new_directory
from metropolis.test.bench.common.errors import BenchError

_FIREWALL = ("iptables", "ip6tables")
_FORMS = ("", "-save", "-restore")
_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_ANYWHERE = [{"dst": "0.0.0.0/0"}]
_BOTH = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
_NO_DAD = tuple(
    (f"ipv6/conf/{which}/{what}", "0")
    for which in ("all", "default")
    for what in ("accept_dad", "dad_transmits")
)

type Json = dict[str, Any]


@dataclass(frozen=True)
class Installed:
    """The unpacked peers, with an environment for peers that may use iptables,
    and one for peers that must find nft only.
    """

    cni: Path
    netavark: Path
    with_iptables: Mapping[str, str]
    only_nft: Mapping[str, str]
    state: Path


def install(root: Path, tars: list[Path], cni: Path | None) -> Installed:
    """Unpack. cni: a directory of other plugins to use instead."""
    for tar in tars:
        try:
            with tarfile.open(tar) as archive:
                archive.extractall(root, members=_wanted(archive), filter="tar")
        except (OSError, tarfile.TarError) as error:
            raise BenchError(f"cannot unpack {tar}: {error}") from error
    programs = root / "bin"
    programs.mkdir(parents=True)
    for name in _FIREWALL:
        for form in _FORMS:
            (programs / f"{name}{form}").symlink_to(root / "usr/sbin/xtables-nft-multi")
    (library,) = [path.parent for path in root.glob("usr/lib/*/libxtables.so.12")]
    common = {"LD_LIBRARY_PATH": str(library), "XTABLES_LIBDIR": str(library / "xtables")}
    state = root / "state"
    state.mkdir()
    installed = Installed(
        cni=cni or root / "usr/lib/cni",
        netavark=root / "usr/lib/podman/netavark",
        with_iptables=common | {"PATH": f"{programs}:{_SYSTEM_PATH}"},
        only_nft=common | {"PATH": _SYSTEM_PATH},
        state=state,
    )
    for program in [installed.netavark, *(installed.cni / name for name in _PLUGINS)]:
        if not os.access(program, os.X_OK):
            raise BenchError(f"{program} is not there, or cannot be executed")
    return installed


_PLUGINS = ("ptp", "bridge", "portmap", "host-local")


def _wanted(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Leave out the documentation, which is half of the archive."""
    return [member for member in archive if not member.name.startswith("./usr/share/")]


def catalogue(installed: Installed) -> dict[str, Callable[[], Subject]]:
    """Return a constructor for each peer, by name."""

    def cni(
        name: str,
        *chain: Json,
        versions: tuple[int, ...] = (4,),
        nft: bool = False,
        port: bool = False,
        settings: Settings | None = None,
    ) -> tuple[str, Callable[[], Subject]]:
        def make() -> Subject:
            ipam = _host_local(new_directory(installed.state, name), versions)
            first, *rest = chain
            whole = [first | {"ipam": ipam}, *rest]
            common = {"cniVersion": "1.0.0", "name": "bench"}
            environment = installed.only_nft if nft else installed.with_iptables
            subject = Cni(
                name,
                versions,
                environment,
                installed.cni,
                [common | plugin for plugin in whole],
                port=port,
                settings=settings,
            )
            if first["type"] == "bridge":
                _limit_to_bridge(subject)
            return subject

        return name, make

    def netavark(name: str, ports: int) -> Subject:
        state = new_directory(installed.state, name)
        subject = Netavark(name, installed.with_iptables, installed.netavark, state, ports)
        _limit_to_bridge(subject)
        return subject

    ptp: Json = {"type": "ptp"}
    ptp_masq: Json = ptp | {"ipMasq": True}
    bridge: Json = {"type": "bridge", "bridge": "cni0", "isGateway": True, "promiscMode": True}
    bridge_masq: Json = bridge | {"ipMasq": True}
    portmap: Json = {"type": "portmap", "capabilities": {"portMappings": True}}
    no_dad = Settings(host=_NO_DAD, pod=_NO_DAD)
    found = dict(
        [
            cni("ptp", ptp),
            cni("ptp dual no-DAD", ptp, versions=(4, 6), settings=no_dad),
            cni("ptp dual DAD", ptp, versions=(4, 6)),
            cni("ptp ipMasq", ptp_masq),
            cni("ptp ipMasq nft", ptp_masq | {"ipMasqBackend": "nftables"}, nft=True),
            cni("bridge ipMasq", bridge_masq),
            cni("bridge ipMasq portmap", bridge_masq, portmap),
            cni("bridge ipMasq portmap 1 port", bridge_masq, portmap, port=True),
            cni(
                "bridge ipMasq portmap 1 port nft",
                bridge_masq | {"ipMasqBackend": "nftables"},
                portmap | {"backend": "nftables"},
                nft=True,
                port=True,
            ),
        ]
    )
    for name, ports in (("netavark NAT", 0), ("netavark NAT 1 port", 1)):
        found[name] = partial(netavark, name, ports)
    return found


def _limit_to_bridge(subject: Subject) -> None:
    subject.most, subject.why_most = 1023, "a Linux bridge takes 1,023 ports"


def _host_local(data_dir: Path, versions: tuple[int, ...]) -> Json:
    subnets = {4: "10.88.0.0/16", 6: "fd00:88::/64"}
    return {
        "type": "host-local",
        "dataDir": str(data_dir),
        "ranges": [[{"subnet": subnets[version]}] for version in versions],
        "routes": _BOTH if 6 in versions else _ANYWHERE,
    }
