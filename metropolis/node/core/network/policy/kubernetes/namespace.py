# SPDX-License-Identifier: Apache-2.0
"""Namespace v1, for the labels that selectors need. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from metropolis.node.core.network.policy.kubernetes.common import (
    TOP_FIELDS,
    is_dns_label,
    read_metadata,
)
from metropolis.node.core.network.policy.kubernetes.documents import Value
from metropolis.node.core.network.policy.kubernetes.fields import Fields, Report
from metropolis.node.core.network.policy.model import NAMESPACE_NAME

KIND: Final = "Namespace"
API_VERSION: Final = "v1"


def read(value: Value, report: Report) -> tuple[str, Mapping[str, str]]:
    """Return the name and the labels, without meaning if an error is reported.

    As the API server does, the label with the name is set.
    """
    top = Fields(value, "", report, TOP_FIELDS)
    given = top.require("metadata")
    metadata = read_metadata(given, report, None)
    name = metadata.name or ""
    if given is not None and metadata.name is not None and not is_dns_label(name):
        said = "a namespace's name is a DNS label of at most 63 characters, without dots"
        report.error(given.line, "metadata.name", said)
    return name, dict(metadata.labels) | {NAMESPACE_NAME: name}
