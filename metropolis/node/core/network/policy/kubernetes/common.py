# SPDX-License-Identifier: Apache-2.0
"""What both kinds of policies have: metadata, selectors, prefixes, port names.

The rules are those of Kubernetes' API server (apimachinery, packages
util/validation and meta/v1/validation).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from metropolis.node.core.network.policy.kubernetes.documents import Value, printable
from metropolis.node.core.network.policy.kubernetes.fields import (
    Fields,
    Report,
    child,
    read_choice,
    read_list,
    read_map,
    read_string,
)
from metropolis.node.core.network.policy.model import (
    NAMESPACE_NAME,
    Operator,
    Requirement,
    Selector,
)
from metropolis.node.core.network.workloads.model import IPNetwork

PORT_MAX: Final = 65535

_LABEL: Final = "[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_DNS_LABEL: Final = re.compile(_LABEL)
_SUBDOMAIN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NAME: Final = re.compile("[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?")
_PORT_NAME: Final = re.compile("(?=[-0-9]*[a-z])[a-z0-9]+(?:-[a-z0-9]+)*")

TOP_FIELDS: Final = ("apiVersion", "kind", "metadata", "spec", "status")
_METADATA: Final = (
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
)


def is_dns_label(text: str) -> bool:
    """Return whether a text is a DNS label (RFC 1123) in small letters."""
    return len(text) <= 63 and _DNS_LABEL.fullmatch(text) is not None


def is_subdomain(text: str) -> bool:
    """Return whether a text is a DNS name (RFC 1123) in small letters."""
    return len(text) <= 253 and _SUBDOMAIN.fullmatch(text) is not None


def is_label_key(text: str) -> bool:
    """Return whether a text is a name, or a DNS name, a slash and a name."""
    prefix, slash, name = text.rpartition("/")
    if slash and not is_subdomain(prefix):
        return False
    return len(name) <= 63 and _NAME.fullmatch(name) is not None


def is_label_value(text: str) -> bool:
    """Return whether a text can be a label's value."""
    return not text or (len(text) <= 63 and _NAME.fullmatch(text) is not None)


def is_port_name(text: str) -> bool:
    """Return whether a text can be a port's name (RFC 6335, section 5.1)."""
    return len(text) <= 15 and _PORT_NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Metadata:
    """None: it cannot be read. namespace: None for a kind without one, too.
    labels: those that can be read.
    """

    name: str | None
    namespace: str | None
    labels: Mapping[str, str] = field(default_factory=dict)


def read_metadata(value: Value | None, report: Report, default_namespace: str | None) -> Metadata:
    """Return what is needed of a policy's metadata; all of it is checked.

    value None: the caller has reported it. default_namespace None: the kind
    has no namespace.
    """
    if value is None:
        return Metadata(None, None)
    fields = Fields(value, "metadata", report, _METADATA)
    labels = _read_labels(fields, "labels", report)
    _read_labels(fields, "annotations", report)
    text = _read_text(fields, "name", report, is_subdomain, "DNS name of at most 253")
    if fields.get("name") is None and fields.get("generateName") is not None:
        report.error(fields.line, fields.path("name"), "required; generateName is not read")
    else:
        fields.require("name")
    given = fields.get("namespace")
    if fields.is_doubtful("namespace") or (given is None and fields.others):
        # There may be a second namespace, or one with another spelling.
        namespace = None
    elif given is None:
        namespace = default_namespace
    elif default_namespace is None:
        namespace = None
        said = "is ignored: the kind has no namespace"
        report.warn(given.line, fields.path("namespace"), said)
    else:
        namespace = _read_text(fields, "namespace", report, is_dns_label, "DNS label of at most 63")
    return Metadata(text, namespace, labels)


def _read_text(
    fields: Fields, name: str, report: Report, valid: Callable[[str], bool], what: str
) -> str | None:
    value = fields.get(name)
    text = None if value is None else read_string(value, fields.path(name), report)
    if value is None or text is None or valid(text):
        return text
    said = f'"{printable(text)}" is no {what} small letters, digits and "-"'
    report.error(value.line, fields.path(name), said)
    return None


def _read_labels(fields: Fields, name: str, report: Report) -> dict[str, str]:
    """Return the labels or annotations of the document itself."""
    value = fields.get(name)
    found: dict[str, str] = {}
    if value is None:
        return found
    for key, item in read_map(value, fields.path(name), report).items():
        path = child(fields.path(name), key)
        # An annotation's key may have capitals in its prefix.
        _check_key(key if name == "labels" else key.lower(), item.line, path, report)
        text = read_string(item, path, report)
        if text is None:
            continue
        if name == "labels":
            _check_value(text, item.line, path, report)
        found[key] = text
    return found


def _check_key(key: str, line: int, path: str, report: Report) -> None:
    if not is_label_key(key):
        said = (
            f'"{printable(key)}" is no key of a label: at most 63 letters, digits, "-", "_", ".",'
            ' after an optional DNS name and "/"'
        )
        report.error(line, path, said)


def _check_value(text: str, line: int, path: str, report: Report) -> None:
    if not is_label_value(text):
        said = (
            f'"{printable(text)}" is no value of a label: at most 63 letters, digits, "-", "_", "."'
        )
        report.error(line, path, said)


def in_namespace(name: str) -> Selector:
    """Return the selector of one namespace."""
    return (Requirement(NAMESPACE_NAME, Operator.IN, (name,)),)


def read_selector(value: Value | None, path: str, report: Report) -> Selector:
    """Return a LabelSelector's requirements; absent, or empty: everything.

    What cannot be read is reported, and left out.
    """
    if value is None:
        return ()
    fields = Fields(value, path, report, ("matchLabels", "matchExpressions"))
    labels = fields.get("matchLabels")
    where = fields.path("matchLabels")
    found: list[Requirement | None] = []
    if labels is not None:
        for key, item in sorted(read_map(labels, where, report).items()):
            _check_key(key, item.line, child(where, key), report)
            text = _read_value(item, child(where, key), report)
            found.append(None if text is None else Requirement(key, Operator.IN, (text,)))
    where = fields.path("matchExpressions")
    found += read_list(
        fields.get("matchExpressions"),
        where,
        report,
        lambda item, at: _read_requirement(item, at, report),
    )
    return tuple(each for each in found if each is not None)


def _read_value(value: Value, path: str, report: Report) -> str | None:
    text = read_string(value, path, report)
    if text is not None:
        _check_value(text, value.line, path, report)
    return text


_OPERATORS: Final = {operator.value: operator for operator in Operator}


def _read_requirement(value: Value, path: str, report: Report) -> Requirement | None:
    fields = Fields(value, path, report, ("key", "operator", "values"))
    key_value, operator_value = fields.require("key"), fields.require("operator")
    key = None if key_value is None else read_string(key_value, fields.path("key"), report)
    if key is not None:
        _check_key(key, fields.line, fields.path("key"), report)
    where = fields.path("values")
    values = read_list(
        fields.get("values"), where, report, lambda item, at: _read_value(item, at, report)
    )
    name = None
    if operator_value is not None:
        name = read_choice(operator_value, fields.path("operator"), report, _OPERATORS)
    if key is None or name is None:
        return None
    operator = _OPERATORS[name]
    needs = operator in (Operator.IN, Operator.NOT_IN)
    if needs and not values:
        report.error(fields.line, where, f"the operator {name} needs values")
    if not needs and values:
        report.error(fields.line, where, f"the operator {name} has no values")
    return Requirement(key, operator, tuple(each for each in values if each is not None))


def read_prefix(value: Value, path: str, report: Report) -> IPNetwork | None:
    """Return a prefix. Bits of the host are cut off with a warning, as
    Kubernetes does (KEP-4858). Refused: what programs read differently, such as
    zeros in front and IPv4 in IPv6.
    """
    text = read_string(value, path, report)
    if text is None:
        return None
    address, slash, length = text.partition("/")
    try:
        if not slash or not length.isascii() or not length.isdecimal() or "%" in address:
            raise ValueError
        if length != str(int(length[:4])):
            raise ValueError
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        said = f'"{printable(text)}" is no prefix, such as 10.0.0.0/8 or fd00::/8'
        report.error(value.line, path, said)
        return None
    if found.version == 6 and ipaddress.IPv6Address(address).ipv4_mapped is not None:
        said = f'"{printable(text)}" is IPv4 in IPv6: write it as IPv4'
        report.error(value.line, path, said)
        return None
    if str(found.network_address) != str(ipaddress.ip_address(address)):
        said = f'"{printable(text)}" has bits behind the prefix; {found} is meant'
        report.warn(value.line, path, said)
    return found


def read_port_name(value: Value, path: str, report: Report) -> str | None:
    """Return the name of a port."""
    text = read_string(value, path, report)
    if text is None or is_port_name(text):
        return text
    hint = "; a number has no quotes" if text.isdecimal() else ""
    said = (
        f'"{printable(text)}" is no name of a port: at most 15 small letters, digits and "-",'
        f" with a letter{hint}"
    )
    report.error(value.line, path, said)
    return None
