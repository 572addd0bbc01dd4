# SPDX-License-Identifier: Apache-2.0
"""What the runtime gets for a manifest."""

from ipaddress import ip_address

import pytest

from metropolis.test.kubelet import configs
from metropolis.test.kubelet.manifest import DnsConfig, Pod, parse
from third_party.cri import api_pb2 as api

NODE = DnsConfig(("192.0.2.1",), ("node.test",), ("ndots:1", "rotate"))


def pod(spec: str = "", metadata: str = "name: web") -> Pod:
    """Return a pod with one container. spec: more fields."""
    ports = "[{containerPort: 80, hostPort: 8080, hostIP: '::1', protocol: SCTP}]"
    text = f"""
apiVersion: v1
kind: Pod
metadata: {{{metadata}}}
spec:
  containers:
  - name: main
    image: x
    command: [sh, "$(A)"]
    args: ["$(A)-$(B)", "$$(A)", "$(NO)"]
    env: [{{name: A, value: a}}, {{name: B, value: "$(A)b"}}]
    ports: {ports if "hostNetwork" not in spec else "[]"}
  {spec}
"""
    return parse(text)[0]


def test_the_sandbox() -> None:
    made = pod("hostname: front", "name: web, uid: u1, labels: {a: b}, annotations: {c/d: e}")
    config = configs.sandbox(made, 3, NODE)
    assert (config.metadata.uid, config.metadata.attempt, config.hostname) == ("u1", 3, "front")
    assert config.metadata.namespace == "default"
    assert dict(config.labels) == {
        "a": "b", "io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "default",
        "io.kubernetes.pod.uid": "u1",
    }  # fmt: skip
    assert config.annotations["c/d"] == "e"
    assert config.annotations["kubernetes.io/config.hash"] == made.hash
    assert config.log_directory == "/var/log/pods/default_web_u1"
    assert list(config.port_mappings) == [
        api.PortMapping(
            protocol=api.SCTP, container_port=80, host_port=8080, host_ip="::1"
        )
    ]  # fmt: skip
    options = config.linux.security_context.namespace_options
    assert options.network == api.POD


def test_labels_of_the_manifest_do_not_hide_the_pod() -> None:
    made = pod(metadata="name: web, uid: u1, labels: {io.kubernetes.pod.uid: other}")
    assert configs.sandbox(made, 0, NODE).labels[configs.UID] == "u1"


def test_the_nodes_network() -> None:
    config = configs.sandbox(pod("hostNetwork: true"), 0, NODE)
    assert config.linux.security_context.namespace_options.network == api.NODE
    assert config.hostname == ""
    made = configs.container(pod("hostNetwork: true"), pod().containers[0], 0, "sha256:1")
    assert not made.mounts


def test_the_container() -> None:
    made = pod()
    config = configs.container(made, made.containers[0], 2, "sha256:1")
    assert list(config.command) == ["sh", "a"]
    assert list(config.args) == ["a-ab", "$(A)", "$(NO)"]
    assert [(one.key, one.value) for one in config.envs] == [("A", b"a"), ("B", b"ab")]
    assert (config.image.image, config.log_path) == ("sha256:1", "main/2.log")
    assert config.annotations["io.kubernetes.container.restartCount"] == "2"
    assert config.labels["io.kubernetes.container.name"] == "main"
    assert config.mounts[0].container_path == "/etc/hosts"


def test_hosts() -> None:
    made = pod("subdomain: shop")
    text = configs.hosts(made, [ip_address("10.0.0.1"), ip_address("fd00::1")])
    full = "web.shop.default.svc.cluster.local\tweb"
    assert text.splitlines()[2:] == [f"10.0.0.1\t{full}", f"fd00::1\t{full}"]
    assert configs.hosts(pod(), [ip_address("10.0.0.1")]).splitlines()[2:] == ["10.0.0.1\tweb"]


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ("", "search node.test\nnameserver 192.0.2.1\noptions ndots:1 rotate\n"),
        (
            "dnsConfig: {nameservers: ['::1', 192.0.2.1], searches: [a.test],"
            " options: [{name: ndots, value: '5'}]}",
            "search node.test a.test\nnameserver 192.0.2.1\nnameserver ::1\n"
            "options ndots:5 rotate\n",
        ),
        (
            "dnsConfig: {nameservers: [192.0.2.9], options: [{name: edns0}]}\n  dnsPolicy: None",
            "nameserver 192.0.2.9\noptions edns0\n",
        ),
    ],
)
def test_dns(spec: str, want: str) -> None:
    assert configs.resolv_conf(configs.dns(pod(spec), NODE)) == want


def test_the_nodes_file() -> None:
    text = "# a\nnameserver ::1\nnameserver\nsearch a\nsearch b c\noptions x\ndomain d\n"
    assert configs.parse_resolv_conf(text) == DnsConfig(("::1",), ("d",), ("x",))
    assert configs.parse_resolv_conf("") == DnsConfig()
