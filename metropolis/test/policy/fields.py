# SPDX-License-Identifier: Apache-2.0
"""Fields of policies as YAML gives them, and label selectors. Pure.

The part of the oracle that both APIs have in common. What the API refuses
raises Invalid.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final

type Labels = Mapping[str, str]
type Manifest = Mapping[str, Any]
"""A policy, or a part of one."""

_PROTOCOLS: Final = ("TCP", "UDP", "SCTP")
_KINDS: Final = {
    "NetworkPolicy": "networking.k8s.io/v1",
    "ClusterNetworkPolicy": "policy.networking.k8s.io/v1alpha2",
}


class Invalid(ValueError):
    """A manifest that the API refuses, or a question that has no answer."""


def selects(selector: Manifest, labels: Labels) -> bool:
    """Return whether a label selector selects these labels. Empty: it does."""
    only(selector, "matchLabels", "matchExpressions")
    wanted = object_of(selector, "matchLabels")
    tests = [labels.get(key) == value for key, value in wanted.items()]
    tests += [_expression(one, labels) for one in list_of(selector, "matchExpressions")]
    return all(tests)


def _expression(expression: Manifest, labels: Labels) -> bool:
    only(expression, "key", "operator", "values")
    key, operator, values = expression["key"], expression["operator"], list_of(expression, "values")
    if operator not in ("In", "NotIn", "Exists", "DoesNotExist"):
        raise Invalid(f"operator: {operator!r}")
    if bool(values) != (operator in ("In", "NotIn")):
        raise Invalid(f"{operator} with values {values}")
    if operator == "Exists":
        return key in labels
    if operator == "DoesNotExist":
        return key not in labels
    if operator == "In":
        return key in labels and labels[key] in values
    return key not in labels or labels[key] not in values


def kind(manifest: Manifest) -> str:
    """Return a policy's kind, which its apiVersion must fit."""
    found = str(manifest.get("kind"))
    if found not in _KINDS or manifest.get("apiVersion") != _KINDS[found]:
        raise Invalid(f"{manifest.get('apiVersion')} {found}")
    return found


def protocol(text: str) -> str:
    """Return a protocol in upper case."""
    if text.upper() not in _PROTOCOLS:
        raise Invalid(f"protocol: {text!r}")
    return text.upper()


def network(text: str) -> IPv4Network | IPv6Network:
    """Return a CIDR. Bits of a host are ignored, as the API does."""
    try:
        return ip_network(text, strict=False)
    except ValueError as error:
        raise Invalid(f"CIDR: {error}") from None


def object_of(parent: Manifest, key: str) -> Manifest:
    """Return an optional object; absent and null are empty."""
    found = parent.get(key)
    if not isinstance(found, Mapping | None):
        raise Invalid(f"{key}: not an object")
    return found or {}


def list_of(parent: Manifest, key: str) -> list[Any]:
    """Return an optional list; absent and null are empty."""
    found = parent.get(key)
    if not isinstance(found, list | None):
        raise Invalid(f"{key}: not a list")
    return found or []


def only(part: Manifest, *known: str) -> None:
    """Refuse fields that are not known."""
    if unknown := part.keys() - set(known):
        raise Invalid(f"unknown fields: {', '.join(sorted(unknown))}")


def one_key(part: Manifest, *known: str) -> str:
    """Return the only field, which is one of these."""
    only(part, *known)
    if len(part) != 1:
        raise Invalid(f"exactly one of {', '.join(known)}: {sorted(part)}")
    return next(iter(part))
