# SPDX-License-Identifier: Apache-2.0
"""Manifests: what is read, what is refused, and how faults are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from metropolis.test.kubelet import document
from metropolis.test.kubelet.manifest import (
    ContainerPort,
    DnsConfig,
    ManifestError,
    Pod,
    check_together,
    parse,
)

EXAMPLE = Path(__file__).parent / "example.yaml"

WEB = """\
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: server
    image: localhost/busybox:latest
"""

ALL = """\
apiVersion: v1
kind: Pod
metadata:
  name: web.test
  namespace: shop
  uid: 0f3c-1
  labels: {app: web, example.com/tier: ""}
  annotations: {kubernetes.io/ingress-bandwidth: 10M}
spec:
  hostname: front
  subdomain: svc
  dnsPolicy: None
  dnsConfig:
    nameservers: [192.0.2.53, "2001:db8::53"]
    searches: [shop.test, .]
    options: [{name: ndots, value: "2"}, {name: edns0}]
  restartPolicy: OnFailure
  terminationGracePeriodSeconds: 3
  containers:
  - name: server
    image: localhost/busybox:latest
    command: [httpd]
    args: [-f, -p, "80"]
    env: [{name: A, value: x}, {name: B}]
    ports:
    - {containerPort: 80, hostPort: 8080, hostIP: 127.0.0.1, protocol: TCP, name: web}
    - {containerPort: 53, protocol: UDP, hostPort: 0}
"""


def faults(text: str) -> list[str]:
    """Return the faults of a text."""
    with pytest.raises(ManifestError) as caught:
        parse(text, "f.yaml")
    return str(caught.value).splitlines()


def test_defaults() -> None:
    (pod,) = parse(WEB)
    assert (pod.full_name, pod.hostname, pod.restart_policy) == ("default/web", "web", "Always")
    assert (pod.dns_policy, pod.grace_s, pod.ports) == ("ClusterFirst", 30, ())
    # As of a static pod: another manifest is another pod.
    assert pod.uid == pod.hash != parse(WEB.replace("server", "other"))[0].uid


def test_every_field() -> None:
    (pod,) = parse(ALL)
    assert (pod.full_name, pod.uid, pod.hostname, pod.subdomain) == (
        "shop/web.test", "0f3c-1", "front", "svc",
    )  # fmt: skip
    assert pod.labels == {"app": "web", "example.com/tier": ""}
    assert pod.annotations == {"kubernetes.io/ingress-bandwidth": "10M"}
    assert pod.dns == DnsConfig(
        ("192.0.2.53", "2001:db8::53"), ("shop.test", "."), ("ndots:2", "edns0")
    )
    assert (pod.restart_policy, pod.grace_s) == ("OnFailure", 3)
    (container,) = pod.containers
    assert (container.command, container.args) == (("httpd",), ("-f", "-p", "80"))
    assert container.env == (("A", "x"), ("B", ""))
    assert container.ports == (
        ContainerPort(80, 8080, "127.0.0.1", "TCP", "web"), ContainerPort(53, 0, "", "UDP", ""),
    )  # fmt: skip


def test_the_example() -> None:
    pods = parse(EXAMPLE.read_text(), "example.yaml")
    check_together(pods)
    assert any(len(pod.containers) == 2 and any(p.host_port for p in pod.ports) for pod in pods)


def test_several_documents() -> None:
    text = f"---\n{WEB}---\n---\n# nothing\n---\n{WEB.replace('name: web', 'name: api')}"
    assert [pod.name for pod in parse(text)] == ["web", "api"]


def test_the_nodes_own_network() -> None:
    text = WEB.replace("spec:\n", "spec:\n  hostNetwork: true\n")
    port = "    ports: [{containerPort: 80%s}]\n"
    assert parse(text + port % "")[0].ports == (ContainerPort(80, 80),)
    assert parse(text + port % ", hostPort: 80")[0].ports == (ContainerPort(80, 80),)
    assert faults(text + port % ", hostPort: 81") == [
        "f.yaml:9: spec.containers[0].ports[0].hostPort: "
        "with hostNetwork it has to be the containerPort"
    ]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("ports:", "prots:", "26: spec.containers[0].prots: unknown field; did you mean ports?"),
        ("hostname:", "hostName:", "10: spec.hostName: unknown field; did you mean hostname?"),
        ("subdomain: svc", "volumes: []", "11: spec.volumes: unknown field; there are containers"),
        ("name: web.test", "name: Web", "4: metadata.name: 'Web': want at most 253"),
        ("name: web.test", f"name: {'a' * 254}", "4: metadata.name: 'aaa"),
        ("  name: web.test\n", "", "4: metadata: name is missing"),
        ("namespace: shop", "namespace: a.b", "5: metadata.namespace: 'a.b': want at most 63"),
        ("uid: 0f3c-1", "uid: ../..", "6: metadata.uid: '../..': want"),
        ("app: web", "app: 1", "7: metadata.labels['app']: want a string; quote it: '1'"),
        ("app: web", "a b: web", "7: metadata.labels['a b']: want a key such as app"),
        ("ingress-bandwidth: 10M", "x: [1]", "8: metadata.annotations['kubernetes.io/x']: want a"),
        ("bandwidth: 10M", "bandwidth: fast", "ingress-bandwidth']: 'fast': want bits per second"),
        ("bandwidth: 10M", "bandwidth: 10Mbit", "'10Mbit': want bits per second as a quantity"),
        ("bandwidth: 10M", 'bandwidth: "1"', "ingress-bandwidth']: '1': want 8k to 1T"),
        ("bandwidth: 10M", "bandwidth: 10m", "'10m': want 8k to 1T"),
        ("bandwidth: 10M", "bandwidth: 2P", "'2P': want 8k to 1T"),
        ("ingress-b", "ingres-b", "is not known; did you mean kubernetes.io/ingress-bandwidth?"),
        ("hostname: front", "hostname: a_b", "10: spec.hostname: 'a_b': want at most 63"),
        ("dnsPolicy: None", "dnsPolicy: none", "12: spec.dnsPolicy: 'none': did you mean None?"),
        ("[192.0.2.53, \"2001:db8::53\"]", "[]", "12: spec.dnsPolicy: None needs at least one"),
        ("192.0.2.53", "192.0.2.256", "spec.dnsConfig.nameservers[0]: '192.0.2.256': want an IP"),
        ("[192.0.2.53", "[192.0.2.1, 192.0.2.2, 192.0.2.3", "nameservers: want at most 3"),
        ("shop.test", "sh op", "spec.dnsConfig.searches[0]: 'sh op': want a domain"),
        ('value: "2"', "value: 2", "spec.dnsConfig.options[0].value: want a string; quote it"),
        ("OnFailure", "Sometimes", "spec.restartPolicy: 'Sometimes': want Always, OnFailure, N"),
        ("Seconds: 3", "Seconds: -1", "spec.terminationGracePeriodSeconds: -1 is not in 0 to"),
        ("Seconds: 3", "Seconds: yes", "spec.terminationGracePeriodSeconds: want a number, 0 to"),
        ("image: localhost/busybox:latest", "image: ' x'", "spec.containers[0].image: ' x': want"),
        ("args: [-f, -p, \"80\"]", "args: [80]", "containers[0].args[0]: want a string; quote it"),
        ("args: [-f, -p, \"80\"]", "args: x", "containers[0].args: want a list"),
        ("name: A", "name: A=B", "spec.containers[0].env[0].name: 'A=B': want printable"),
        ("containerPort: 80,", "containerPort: 0,", "ports[0].containerPort: 0 is not in 1 to 65"),
        ("hostPort: 8080", "hostPort: 65536", "ports[0].hostPort: 65536 is not in 0 to 65535"),
        ("hostPort: 8080", "hostPort: '80'", "ports[0].hostPort: want a number, 0 to 65535"),
        ("127.0.0.1", "localhost", "ports[0].hostIP: 'localhost': want an IP address"),
        ("protocol: TCP", "protocol: tcp", "ports[0].protocol: 'tcp': did you mean TCP?"),
        ("protocol: TCP", "protocol: ICMP", "protocol: 'ICMP': want TCP, UDP, SCTP"),
        ("name: web}", "name: a--b}", "ports[0].name: 'a--b': want at most 15"),
        ("name: web}", "name: '80'}", "ports[0].name: '80': want at most 15"),
        ("apiVersion: v1", "apiVersion: apps/v1", "1: apiVersion: 'apps/v1': want v1"),
        ("kind: Pod", "kind: Deployment", "2: kind: 'Deployment': want Pod"),
        ("kind: Pod\n", "", "1: document: kind is missing; want kind: Pod"),
    ],
)  # fmt: skip
def test_a_fault_names_line_and_path(old: str, new: str, fault: str) -> None:
    assert old in ALL
    found = faults(ALL.replace(old, new, 1))
    assert len(found) == 1
    assert fault in found[0]
    assert found[0].startswith("f.yaml:")


def test_all_faults_are_found_at_once() -> None:
    found = faults(ALL.replace("name: web.test", "name: '-'").replace("[httpd]", "7"))
    assert [fault.split(" ")[1] for fault in found] == [
        "metadata.name:", "spec.containers[0].command:",
    ]  # fmt: skip


def test_names_and_host_ports_are_a_pods_only_once() -> None:
    again = "  - {name: server, image: x, ports: [{containerPort: 1, hostPort: %s}]}\n"
    free = again.replace("server", "other")
    assert faults(ALL + again % 9) == [
        "f.yaml:28: spec.containers[1].name: 'server' is another container's"
    ]
    assert faults(ALL.replace("hostIP: 127.0.0.1, ", "") + free % 8080) == [
        "f.yaml:28: spec.containers[1].ports[0]: "
        "host port 8080/TCP is also spec.containers[0].ports[0]'s"
    ]
    # One address, and all others.
    assert len(parse(ALL + free % 8080)[0].ports) == 3
    both = "{containerPort: 80, name: web}"
    assert faults(WEB + f"    ports: [{both}, {both}]\n") == [
        "f.yaml:8: spec.containers[0].ports[1].name: 'web' is another port's"
    ]


def test_pods_of_one_node() -> None:
    (pod,) = parse(ALL)
    other = parse(ALL.replace("web.test", "web"))[0]
    with pytest.raises(ManifestError) as caught:
        check_together([pod, pod, other])
    assert str(caught.value).splitlines() == [
        "pod shop/web.test is there twice",
        "pod shop/web: pod shop/web.test has its uid 0f3c-1",
        "pod shop/web: host port 8080/TCP at 127.0.0.1 is pod shop/web.test's",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "1: there is no pod in it"),
        ("a", "1: document: want a map"),
        ("a: 1\na: 2\n", "2: key 'a' again; it is in line 1 already"),
        ("a: [", "1: not YAML: "),
        ("\ta: 1", "1: not YAML: "),
        ("a: \x00", "1: not YAML: "),
        ("a: *x", "1: not YAML: found undefined alias"),
        ("a: &x [*x]", "1: an anchor contains itself"),
        ("<<: {a: 1}", "1: merge keys"),
        ("a: !!python/name:os.system x", "1: tag tag:yaml.org,2002:python/name:os.system: only"),
        ("a: !x {}", "1: tag !x: only plain"),
        ("a: !!int x", "1: 'x' is no int"),
        ("a: !!bool x", "1: 'x' is no bool"),
        ("1: a", "1: a key has to be a string; quote it: '1'"),
        ("? [a]\n: 1", "1: a key has to be a string"),
        ("[" * 2000, "1: values are nested deeper than 40"),
        ("a: " + "x" * document.MOST_BYTES, "1: the file has more than 256 KiB"),
    ],
)
def test_what_is_no_document(text: str, fault: str) -> None:
    assert faults(text)[0].startswith(f"f.yaml:{fault}")


def test_a_bomb_of_anchors() -> None:
    levels = [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert "more than 20000 values" in faults("\n".join(["a0: &a0 [x]", *levels]))[0]


@given(st.text())
def test_any_text_is_refused_or_read(text: str) -> None:
    try:
        parse(text)
    except ManifestError as error:
        assert str(error).startswith("pod:")


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.binary(max_size=3) | st.dates(),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["apiVersion", "kind", "metadata", "spec", "name", "containers", "ports", "hostPort",
             "containerPort", "image", "env", "dnsConfig", "nameservers", "labels", "uid"]
        ), inner, max_size=4,
    ),
    max_leaves=20,
)  # fmt: skip


@given(_PLAIN)
def test_any_values_are_refused_or_read(plain: object) -> None:
    try:
        parse(yaml.dump(plain))
    except ManifestError as error:
        assert str(error).startswith("pod:")


_NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 65535), st.integers(0, 65535), st.sampled_from(["TCP", "UDP", "SCTP"]),
            st.sampled_from(["", "0.0.0.0", "::", "192.0.2.1", "2001:DB8::1", "2001:db8::1"]),
        ), max_size=6,
    ),
    _NAMES,
)  # fmt: skip
def test_ports_are_what_was_written(ports: list[tuple[int, int, str, str]], name: str) -> None:
    """Ports of one pod never hold the same; else all are read as written."""
    written = [
        {"containerPort": port, "hostPort": host, "protocol": protocol, "hostIP": ip}
        if ip else {"containerPort": port, "hostPort": host, "protocol": protocol}
        for port, host, protocol, ip in ports
    ]  # fmt: skip
    text = yaml.dump(
        {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "x", "ports": written}]},
        }
    )  # fmt: skip
    made = [ContainerPort(port, host, ip, protocol) for port, host, protocol, ip in ports]
    held = [item for port in made for item in port.held]
    if len(held) != len(set(held)):
        assert all("is also" in fault for fault in faults(text))
        return
    pod: Pod = parse(text)[0]
    assert pod.ports == tuple(made)
    assert pod.name == name
