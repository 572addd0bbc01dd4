# SPDX-License-Identifier: Apache-2.0
"""The command, as operators call it, on a real etcd."""

import asyncio
import base64
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metropolis.cli.metroctl import main
from metropolis.node.core.curator import keys
from metropolis.node.core.curator.testing.cluster import NETWORKS, Cluster, eventually, start

INIT = ("cluster", "init", "--pod-network", NETWORKS[0], "--pod-network", NETWORKS[1])


@dataclass(frozen=True)
class Done:
    """A process that has ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


async def metroctl(*arguments: str, env: dict[str, str] | None = None) -> Done:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "metropolis.cli.metroctl.main", *arguments,
        env={"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path), **(env or {})},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert b"Traceback" not in err, err.decode()
    return Done(process.returncode or 0, out.decode(), err.decode())


def flags(cluster: Cluster) -> Sequence[str]:
    files = cluster.files
    given = ("--endpoint", cluster.server.endpoint, "--ca", files.ca, "--cert", files.cert)
    return (*given, "--key", files.key)


async def test_a_cluster_from_its_beginning(tmp_path: Path) -> None:
    async with start(tmp_path) as cluster:
        to = flags(cluster)
        done = await metroctl(*to, "cluster", "show")
        assert (done.status, done.out) == (1, "")
        assert "configuration is not there; `cluster init` writes it" in done.err
        done = await metroctl(*to, "--json", *INIT, "--mtu", "1400")
        assert done.status == 0, done.err
        assert done.json["created"] is True
        # The same again is fine, another is not.
        done = await metroctl(*to, "--json", *INIT, "--mtu", "1400")
        assert (done.status, done.json["created"]) == (0, False)
        done = await metroctl(*to, *INIT)
        assert done.status == 1
        assert "the cluster is there already, with another configuration" in done.err
        assert (await metroctl(*to, "node", "list")).out == "no node has joined yet\n"
        async with cluster.machine("web-1") as machine:
            held = await machine.joined()
            done = await metroctl(*to, "cluster", "show")
            assert done.out.splitlines()[:2] == [
                "POD NETWORK    PER NODE  PREFIXES  HELD  FREED",
                "10.200.0.0/16  /24       256       1     0",
            ]
            assert "nodes: 1 active, 1 alive, 0 removed" in done.out
            done = await metroctl(*to, "node", "list")
            head, row = done.out.splitlines()
            assert head.split()[:4] == ["NODE", "STATE", "ALIVE", "UNDERLAY"]
            assert row.split() == [
                "web-1", "active", "yes", str(machine.underlay.peek()),
                f"{held[0]},", str(held[1]), "0", "test",
            ]  # fmt: skip
            (node,) = (await metroctl(*to, "--json", "node", "list")).json["nodes"]
            # As `wg` prints it.
            assert len(base64.b64decode(node["public_key"], validate=True)) == 32
            assert (node["underlay_address"], set(node["prefixes"])) == (
                str(machine.underlay.peek()), set(map(str, held)),
            )  # fmt: skip
            done = await metroctl(*to, "--json", "node", "rotate-key", "web-1")
            assert done.json == {"node": "web-1", "wanted_key_epoch": 1}
            await eventually(machine.curator.mesh, lambda mesh: mesh.wanted_key_epoch == 1)
            assert "0 (1 wanted)" in (await metroctl(*to, "node", "list")).out
            done = await metroctl(*to, "node", "forget", "web-1")
            assert done.status == 1
            assert "`node remove web-1` removes it" in done.err
            done = await metroctl(*to, "node", "remove", "web-1")
            assert (done.status, done.err) == (0, "")
            await machine.has_prefixes(lambda prefixes: not prefixes)
            (node,) = (await metroctl(*to, "node", "list", "--json")).json["nodes"]
            assert (node["state"], node["alive"], node["prefixes"]) == ("removed", False, [])
            assert (await metroctl(*to, "node", "remove", "web-1")).status == 0
            assert (await metroctl(*to, "node", "rotate-key", "web-1")).status == 1
            assert (await metroctl(*to, "node", "forget", "web-1")).status == 0
            await machine.has_prefixes(bool)
        done = await metroctl(*to, "node", "remove", "nobody")
        assert done.status == 1
        assert 'there is no node "nobody"; `node list` shows all' in done.err


async def test_networks_are_corrected(tmp_path: Path) -> None:
    async with start(tmp_path) as cluster:
        to = flags(cluster)
        new = ("--pod-network", "10.201.0.0/16:24")
        done = await metroctl(*to, "cluster", "set-networks", *new)
        assert done.status == 1
        assert "is not there; `cluster init` writes one" in done.err
        await metroctl(*to, *INIT, "--mtu", "1400")
        async with cluster.machine("web-1") as machine:
            old = await machine.joined()
            done = await metroctl(*to, "--json", "cluster", "set-networks", *new)
            assert done.status == 0, done.err
            assert done.json["changed"] is True
            assert done.json["outside"] == [
                {"prefix": prefix, "node": "web-1"} for prefix in sorted(map(str, old))
            ]
            await machine.has_prefixes(lambda held: [str(one)[:7] for one in held] == ["10.201."])
            done = await metroctl(*to, "cluster", "set-networks", *new)
            assert (done.status, done.out.splitlines()[0][:34]) == (
                0, "the pod networks were so already; ",
            )  # fmt: skip
            shown = (await metroctl(*to, "--json", "cluster", "show")).json
            assert (shown["mtu"], len(shown["pod_networks"])) == (1400, 1)
            underlay = str(machine.underlay.peek())
            assert underlay.startswith("192.0.")
            for network, said in (
                ("192.0.0.0/16:24", 'node "web-1" would be cut off'),
                (f"{old[0]}:26", f'would give addresses of {old[0]}, which "web-1" holds'),
                ("10.201.0.0/16:25", 'which "web-1" holds'),
            ):
                done = await metroctl(*to, "cluster", "set-networks", "--pod-network", network)
                assert (done.status, said in done.err) == (1, True), done.err
        async with cluster.machine("web-2") as machine:
            await machine.joined()
            done = await metroctl(
                *to, "cluster", "set-networks", "--pod-network", "10.202.0.0/24:24"
            )
            assert (done.status, "prefixes for 1 nodes, and there are 2" in done.err) == (1, True)


async def test_the_environment_says_where(tmp_path: Path) -> None:
    """Paths are relative to where `bazel run` was called."""
    async with start(tmp_path, *NETWORKS) as cluster:
        files, pki = cluster.files, tmp_path / "pki"
        env = {
            "METROCTL_ENDPOINTS": f"127.0.0.1:1, {cluster.server.endpoint}",
            "METROCTL_CA": files.ca,
            "METROCTL_CERT": Path(files.cert).name,
            "METROCTL_KEY": Path(files.key).name,
            "BUILD_WORKING_DIRECTORY": str(pki),
        }
        done = await metroctl("--json", "cluster", "show", env=env)
        assert done.status == 0, done.err
        assert done.json["mtu"] is None


async def test_what_others_wrote_is_reported_and_harmless(tmp_path: Path) -> None:
    async with start(tmp_path, *NETWORKS) as cluster:
        for key in (keys.node("a"), keys.member("b"), keys.CLAIMS + b"10.200.1.0/24"):
            await cluster.put(key, b"\xff\xff")
        done = await metroctl(*flags(cluster), "node", "list")
        assert done.status == 0
        assert done.err.count("the store has what nodes refuse") == 3
        assert [line.split()[:3] for line in done.out.splitlines()[1:]] == [
            ["a", "unknown", "yes"],
            ["b", "unknown", "no"],
        ]
        await cluster.put(keys.CLUSTER, b"\xff")
        done = await metroctl(*flags(cluster), *INIT)
        assert (done.status, "delete /metropolis/v1/cluster" in done.err) == (1, True)


async def test_failures_say_what_failed(tmp_path: Path) -> None:
    async with start(tmp_path) as cluster:
        to = flags(cluster)
        done = await metroctl(*to, "--ca", "/nowhere/ca.pem", "node", "list")
        assert (done.status, done.err) == (
            1, "metroctl node list: /nowhere/ca.pem: No such file or directory\n",
        )  # fmt: skip
        await cluster.server.kill()
        done = await metroctl(*to, "node", "list")
        assert done.status == 1
        assert f"{cluster.server.endpoint}: status: UNAVAILABLE" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "cluster|node|workload"),
        (("workload",), "status|list|check|watch"),
        (("cluster",), "init|show"),
        (("cluster", "init"), "--pod-network"),
        (("cluster", "init", "--pod-network", "10.0.0.0/8"), "PREFIX:LENGTH"),
        (("cluster", "init", "--pod-network", "10.0.0.1/8:24"), "without host bits"),
        (("cluster", "init", "--pod-network", "10.0.0.0/8:7"), "not between /8 and /30"),
        (("cluster", "init", "--pod-network", "fd00::/48:127"), "not between /48 and /126"),
        (("cluster", "init", "--pod-network", "169.254.0.0/16:24"), "link-local"),
        ((*INIT, "--pod-network", "10.200.5.0/24:25"), "overlap"),
        (("cluster", "set-networks"), "--pod-network"),
        (("cluster", "set-networks", *INIT[2:], "--pod-network", "10.200.5.0/24:25"), "overlap"),
        (("cluster", "set-networks", *INIT[2:], "--mtu", "1400"), "unrecognized"),
        ((*INIT, "--mtu", "9"), "not between 1280 and 65535"),
        (("node", "remove", "Not/A/Node"), "cannot name a node"),
        (("node", "remove"), "ID"),
        (("node", "list"), "METROCTL_ENDPOINTS"),
        (("--endpoint", "x", "node", "list"), "METROCTL_CA"),
        # gRPC takes the first for port 34463, and cannot write the second down.
        (("--endpoint", "x:99999", "node", "list"), "is not HOST[:PORT]"),
        (("--endpoint", "\udcff", "node", "list"), "is not HOST[:PORT]"),
        (("--endpoint", "fd00::1", "node", "list"), "is not HOST[:PORT]"),
    ],
)
def test_wrong_arguments(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main.main(arguments)
    assert raised.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("cluster",),
        ("cluster", "init"),
        ("cluster", "set-networks"),
        ("node",),
        ("node", "remove"),
        ("node", "list"),
        ("workload",),
        ("workload", "watch"),
    ],
)
def test_help_is_there(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main.main([*arguments, "--help"])
    assert raised.value.code == 0
    assert capsys.readouterr().out.startswith("usage: metroctl")
