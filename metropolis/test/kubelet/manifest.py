# SPDX-License-Identifier: Apache-2.0
"""Pods from a file of YAML: a subset of Kubernetes' Pod, v1. Pure.

Unknown fields are refused, since a field without effect is worse than none. The
rules for values are Kubernetes' (`pkg/apis/core/validation`); all faults of a
file are found at once, each with its line and path.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from ipaddress import ip_address

from metropolis.node.core.network.workloads.bandwidth import RATE_MAX, RATE_MIN
from metropolis.test.kubelet.document import DocumentError, Value, read

# RFC 1123, as k8s.io/apimachinery/pkg/util/validation has it.
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_KEY_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_PORT_NAME = re.compile(r"(?!.*--)(?=.*[a-z])[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?")
_ENV_NAME = re.compile(r"[^=\x00-\x1f\x7f-\U0010ffff]+")
_LIMITS = ("kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth")
# k8s.io/apimachinery/pkg/api/resource, without exponents.
_SUFFIXES: dict[str, Decimal | int] = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
    "m": Decimal("0.001"),
}  # fmt: skip
_QUANTITY = re.compile(rf"([0-9]{{1,18}}(?:\.[0-9]{{1,9}})?)({'|'.join(_SUFFIXES)})")
# It becomes part of a path.
_UID = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9])?")
# Path components and a tag or digest, of any registry.
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,1023}")

PROTOCOLS = ("TCP", "UDP", "SCTP")
RESTART_POLICIES = ("Always", "OnFailure", "Never")
DNS_POLICIES = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
MOST_NAMESERVERS, MOST_SEARCHES, MOST_SEARCH_CHARACTERS = 3, 32, 2048
MOST_ANNOTATIONS_BYTES = 256 << 10
WILDCARDS = frozenset({"0.0.0.0", "::"})


class ManifestError(Exception):
    """The file has no pods that can be started: a line for each fault."""


@dataclass(frozen=True)
class ContainerPort:
    """host_port: 0: none. host_ip: "": every address of the node."""

    container_port: int
    host_port: int = 0
    host_ip: str = ""
    protocol: str = "TCP"
    name: str = ""

    @property
    def held(self) -> frozenset[tuple[str, str, int]]:
        """Return what no other port may have: protocol, address, number."""
        if not self.host_port:
            return frozenset()
        hosts = WILDCARDS if not self.host_ip else {str(ip_address(self.host_ip))}
        return frozenset((self.protocol, host, self.host_port) for host in hosts)


@dataclass(frozen=True)
class Container:
    """One container; command and args empty: those of the image."""

    name: str
    image: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    ports: tuple[ContainerPort, ...] = ()


@dataclass(frozen=True)
class DnsConfig:
    """options: as resolv.conf has them, such as ndots:2."""

    nameservers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pod:
    """A pod to be run. grace_s: seconds from SIGTERM to SIGKILL."""

    name: str
    containers: tuple[Container, ...]
    namespace: str = "default"
    given_uid: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    host_network: bool = False
    given_hostname: str = ""
    subdomain: str = ""
    dns_policy: str = "ClusterFirst"
    dns: DnsConfig = DnsConfig()
    restart_policy: str = "Always"
    grace_s: int = 30

    @property
    def hash(self) -> str:
        """Return 32 digits that differ when anything of the pod does."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:32]

    @property
    def uid(self) -> str:
        """Return the given UID, or, as for static pods, the hash."""
        return self.given_uid or self.hash

    @property
    def hostname(self) -> str:
        """Return the given one, or the beginning of the name that is one."""
        return self.given_hostname or self.name[:63].rstrip("-.")

    @property
    def ports(self) -> tuple[ContainerPort, ...]:
        """Return the ports of all containers."""
        return tuple(port for container in self.containers for port in container.ports)

    @property
    def full_name(self) -> str:
        """Return NAMESPACE/NAME."""
        return f"{self.namespace}/{self.name}"


def parse(text: str, source: str = "pod") -> list[Pod]:
    """Return the pods of a text. source: its name in errors.

    Raises ManifestError.
    """
    try:
        documents = read(text)
    except DocumentError as error:
        raise ManifestError(f"{source}:{error}") from error
    faults: list[str] = []
    pods = [_pod(_At(value, "", faults)) for value in documents]
    if faults:
        raise ManifestError("\n".join(f"{source}:{fault}" for fault in faults))
    if not pods:
        raise ManifestError(f"{source}:1: there is no pod in it")
    return pods


def check_together(pods: Iterable[Pod]) -> None:
    """Raise ManifestError if the pods cannot be on one node."""
    faults: list[str] = []
    names: set[str] = set()
    uids: dict[str, str] = {}
    held: dict[tuple[str, str, int], str] = {}
    for pod in pods:
        if pod.full_name in names:
            faults.append(f"pod {pod.full_name} is there twice")
            continue
        names.add(pod.full_name)
        if other := uids.get(pod.uid):
            faults.append(f"pod {pod.full_name}: pod {other} has its uid {pod.uid}")
        uids[pod.uid] = pod.full_name
        taken = {item for port in pod.ports for item in port.held}
        for protocol, host, port in sorted(taken & held.keys()):
            other = held[protocol, host, port]
            faults.append(
                f"pod {pod.full_name}: host port {port}/{protocol} at {host} is pod {other}'s"
            )
        held |= dict.fromkeys(taken, pod.full_name)
    if faults:
        raise ManifestError("\n".join(faults))


class _At:
    """A place in a document, and the faults so far. path: "": the top."""

    def __init__(self, value: Value, path: str, faults: list[str]) -> None:
        self.value = value
        self.path = path
        self.faults = faults

    def fault(self, text: str) -> None:
        self.faults.append(f"{self.value.line}: {self.path or 'document'}: {text}")

    def fields(self, *known: str) -> dict[str, _At]:
        """Return the fields of a map; those with null count as absent."""
        plain = self.value.plain
        if not isinstance(plain, dict):
            self.fault(f"want a map with {', '.join(known)}")
            return {}
        found = {}
        for name, value in plain.items():
            at = _At(value, f"{self.path}.{name}" if self.path else name, self.faults)
            if name in known:
                if value.plain is not None:
                    found[name] = at
                continue
            close = difflib.get_close_matches(name, known, 1) or [
                one for one in known if one.lower() == name.lower()
            ]
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            at.fault(f"unknown field; {hint}")
        return found

    def items(self) -> list[_At]:
        plain = self.value.plain
        if not isinstance(plain, list):
            self.fault("want a list")
            return []
        return [
            _At(item, f"{self.path}[{number}]", self.faults) for number, item in enumerate(plain)
        ]

    def text(self) -> str:
        plain = self.value.plain
        if isinstance(plain, str):
            return plain
        if isinstance(plain, list | dict) or plain is None:
            self.fault("want a string")
        else:
            shown = str(plain).lower() if isinstance(plain, bool) else plain
            self.fault(f"want a string; quote it: '{shown}'")
        return ""

    def texts(self) -> tuple[str, ...]:
        return tuple(item.text() for item in self.items())

    def number(self, least: int, most: int) -> int:
        plain = self.value.plain
        if isinstance(plain, bool) or not isinstance(plain, int):
            self.fault(f"want a number, {least} to {most}")
            return least
        if not least <= plain <= most:
            self.fault(f"{plain} is not in {least} to {most}")
        return plain

    def boolean(self) -> bool:
        if not isinstance(self.value.plain, bool):
            self.fault("want true or false")
        return self.value.plain is True

    def one_of(self, choices: Sequence[str]) -> str:
        text = self.text()
        if text and text not in choices:
            near = [one for one in choices if one.lower() == text.lower()]
            hint = f"did you mean {near[0]}?" if near else f"want {', '.join(choices)}"
            self.fault(f"{text!r}: {hint}")
        return text

    def matching(self, pattern: re.Pattern[str], want: str, most: int = 1024) -> str:
        text = self.text()
        if isinstance(self.value.plain, str) and (not pattern.fullmatch(text) or len(text) > most):
            self.fault(f"{text[:80]!r}: want {want}")
        return text

    def label(self) -> str:
        return self.matching(_LABEL, "at most 63 of a-z, 0-9 and '-', not '-' at an end")

    def subdomain(self) -> str:
        return self.matching(
            _SUBDOMAIN, "at most 253 of a-z, 0-9, '-' and '.', such as web-1.test", 253
        )

    def address(self) -> str:
        text = self.text()
        try:
            ip_address(text)
        except ValueError:
            if text or isinstance(self.value.plain, str):
                self.fault(f"{text[:80]!r}: want an IP address")
        return text

    def map_of_texts(self, check: Callable[[_At], str]) -> dict[str, str]:
        plain = self.value.plain
        if not isinstance(plain, dict):
            self.fault("want a map of strings")
            return {}
        found = {}
        for key, value in plain.items():
            at = _At(value, f"{self.path}[{key!r}]", self.faults)
            prefix, slash, name = key.rpartition("/")
            if not _KEY_NAME.fullmatch(name) or (
                slash and (len(prefix) > 253 or not _SUBDOMAIN.fullmatch(prefix))
            ):
                at.fault("want a key such as app or example.com/app")
            found[key] = check(at)
        return found


def _label_value(at: _At) -> str:
    return at.matching(_LABEL_VALUE, "at most 63 of A-Z, a-z, 0-9, '-', '_' and '.'")


def _annotation(at: _At) -> str:
    """Return the text; those of limits are what the network can do, too."""
    text = at.text()
    key = at.path.rpartition("['")[2].removesuffix("']")
    if key.startswith("kubernetes.io/") and key.endswith("-bandwidth"):
        if key not in _LIMITS:
            (close,) = difflib.get_close_matches(key, _LIMITS, 1, 0.0)
            at.fault(f"is not known; did you mean {close}?")
        elif (found := _QUANTITY.fullmatch(text)) is None:
            at.fault(f"{text!r}: want bits per second as a quantity, such as 10M")
        elif not RATE_MIN <= Decimal(found[1]) * _SUFFIXES[found[2]] <= RATE_MAX:
            at.fault(f"{text!r}: want 8k to 1T")
    return text


def _pod(at: _At) -> Pod:
    top = at.fields("apiVersion", "kind", "metadata", "spec")
    for name, want in (("apiVersion", "v1"), ("kind", "Pod")):
        if name not in top:
            at.fault(f"{name} is missing; want {name}: {want}")
        elif top[name].text() not in ("", want):
            top[name].fault(f"{top[name].text()!r}: want {want}")
    made: dict[str, object] = {"name": "", "containers": ()}
    for name, reader in (("metadata", _metadata), ("spec", _spec)):
        if name in top:
            made |= reader(top[name])
        else:
            at.fault(f"{name} is missing")
    return Pod(**made)  # type: ignore[arg-type]


def _metadata(at: _At) -> dict[str, object]:
    found = at.fields("name", "namespace", "uid", "labels", "annotations")
    made: dict[str, object] = {}
    if "name" in found:
        made["name"] = found["name"].subdomain()
    else:
        at.fault("name is missing")
    if "namespace" in found:
        made["namespace"] = found["namespace"].label()
    if "uid" in found:
        made["given_uid"] = found["uid"].matching(
            _UID, "at most 253 of A-Z, a-z, 0-9, '-', '_' and '.'"
        )
    if "labels" in found:
        made["labels"] = found["labels"].map_of_texts(_label_value)
    if "annotations" in found:
        texts = found["annotations"].map_of_texts(_annotation)
        made["annotations"] = texts
        if (
            sum(len(k.encode()) + len(v.encode()) for k, v in texts.items())
            > MOST_ANNOTATIONS_BYTES
        ):
            found["annotations"].fault(f"more than {MOST_ANNOTATIONS_BYTES >> 10} KiB")
    return made


def _spec(at: _At) -> dict[str, object]:
    found = at.fields(
        "containers", "hostNetwork", "hostname", "subdomain", "dnsPolicy", "dnsConfig",
        "restartPolicy", "terminationGracePeriodSeconds",
    )  # fmt: skip
    readers: tuple[tuple[str, str, Callable[[_At], object]], ...] = (
        ("hostNetwork", "host_network", _At.boolean),
        ("hostname", "given_hostname", _At.label),
        ("subdomain", "subdomain", _At.label),
        ("dnsPolicy", "dns_policy", lambda one: one.one_of(DNS_POLICIES)),
        ("dnsConfig", "dns", _dns),
        ("restartPolicy", "restart_policy", lambda one: one.one_of(RESTART_POLICIES)),
        ("terminationGracePeriodSeconds", "grace_s", lambda one: one.number(0, 2**31 - 1)),
    )
    made = {field: reader(found[name]) for name, field, reader in readers if name in found}
    host_network = made.get("host_network") is True
    if "containers" not in found:
        at.fault("containers is missing")
    else:
        places = found["containers"].items()
        if not places:
            found["containers"].fault("want at least one")
        made["containers"] = _containers(places, host_network=host_network)
    dns = made.get("dns", DnsConfig())
    if made.get("dns_policy") == "None" and isinstance(dns, DnsConfig) and not dns.nameservers:
        found["dnsPolicy"].fault("None needs at least one of dnsConfig.nameservers")
    return made


def _containers(places: Sequence[_At], *, host_network: bool) -> tuple[Container, ...]:
    containers = []
    names: set[str] = set()
    held: dict[tuple[str, str, int], str] = {}
    for at in places:
        found = at.fields("name", "image", "command", "args", "env", "ports")
        for name in ("name", "image"):
            if name not in found:
                at.fault(f"{name} is missing")
        name = found["name"].label() if "name" in found else ""
        if name in names:
            found["name"].fault(f"{name!r} is another container's")
        names.add(name)
        ports = _ports(found["ports"], held, host_network=host_network) if "ports" in found else ()
        containers.append(
            Container(
                name=name,
                image=found["image"].matching(_IMAGE, "an image, such as localhost/busybox:latest")
                if "image" in found else "",
                command=found["command"].texts() if "command" in found else (),
                args=found["args"].texts() if "args" in found else (),
                env=tuple(_env(item) for item in found["env"].items()) if "env" in found else (),
                ports=ports,
            )
        )  # fmt: skip
    return tuple(containers)


def _env(at: _At) -> tuple[str, str]:
    found = at.fields("name", "value")
    if "name" not in found:
        at.fault("name is missing")
        return "", ""
    name = found["name"].matching(_ENV_NAME, "printable ASCII without '='")
    return name, found["value"].text() if "value" in found else ""


def _ports(
    at: _At, held: dict[tuple[str, str, int], str], *, host_network: bool
) -> tuple[ContainerPort, ...]:
    """held: the pod's host ports so far, and their paths; it grows."""
    ports = []
    names: set[str] = set()
    for item in at.items():
        found = item.fields("containerPort", "hostPort", "hostIP", "protocol", "name")
        if "containerPort" not in found:
            item.fault("containerPort is missing")
            continue
        number = found["containerPort"].number(1, 65535)
        # With the node's own network they are the same.
        host_port = number if host_network else 0
        if "hostPort" in found:
            # Kubernetes takes 0 for none.
            host_port = found["hostPort"].number(0, 65535) or host_port
            if host_network and host_port != number:
                found["hostPort"].fault("with hostNetwork it has to be the containerPort")
        before = len(at.faults)
        host_ip = found["hostIP"].address() if "hostIP" in found else ""
        name = ""
        if "name" in found:
            name = found["name"].matching(
                _PORT_NAME, "at most 15 of a-z, 0-9 and '-', with a letter, without '--'", 15
            )
            if name in names:
                found["name"].fault(f"{name!r} is another port's")
            names.add(name)
        protocol = found["protocol"].one_of(PROTOCOLS) if "protocol" in found else "TCP"
        port = ContainerPort(number, host_port, host_ip, protocol, name)
        ports.append(port)
        if len(at.faults) == before:
            twice = sorted(port.held & held.keys())
            if twice:
                item.fault(f"host port {host_port}/{protocol} is also {held[twice[0]]}'s")
            held |= dict.fromkeys(port.held, item.path)
    return tuple(ports)


def _dns(at: _At) -> DnsConfig:
    found = at.fields("nameservers", "searches", "options")
    nameservers = tuple(
        item.address() for item in (found["nameservers"].items() if "nameservers" in found else ())
    )
    if len(nameservers) > MOST_NAMESERVERS:
        found["nameservers"].fault(f"want at most {MOST_NAMESERVERS}")
    searches = tuple(
        _search(item) for item in (found["searches"].items() if "searches" in found else ())
    )
    if len(searches) > MOST_SEARCHES or len(" ".join(searches)) > MOST_SEARCH_CHARACTERS:
        found["searches"].fault(
            f"want at most {MOST_SEARCHES}, with {MOST_SEARCH_CHARACTERS} characters"
        )
    options = tuple(
        _option(item) for item in (found["options"].items() if "options" in found else ())
    )
    return DnsConfig(nameservers, searches, options)


def _search(at: _At) -> str:
    text = at.text()
    if text != "." and not _SUBDOMAIN.fullmatch(text.removesuffix(".").replace("_", "a")):
        at.fault(f"{text[:80]!r}: want a domain")
    return text


def _option(at: _At) -> str:
    found = at.fields("name", "value")
    if "name" not in found:
        at.fault("name is missing")
        return ""
    word = re.compile(r"[!-~]{1,255}")
    name = found["name"].matching(word, "a word, such as ndots")
    return f"{name}:{found['value'].matching(word, 'a word')}" if "value" in found else name
