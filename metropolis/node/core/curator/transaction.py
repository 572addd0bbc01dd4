# SPDX-License-Identifier: Apache-2.0
"""A transaction on the store: its comparisons and its writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Put:
    """A key's new value. lease: the key ends with it; 0: never."""

    key: bytes
    value: bytes
    lease: int = 0


@dataclass(frozen=True)
class Transaction:
    """All or nothing: `puts` and `deletes` are done when each key of `compare`
    has that mod_revision (0: it is absent), and each of `values` that value.
    A key is in one of them, once.

    values: for a restored store, whose revisions count on from an older one, so
    that a revision alone proves nothing.
    """

    compare: Mapping[bytes, int]
    puts: tuple[Put, ...] = ()
    deletes: tuple[bytes, ...] = ()
    values: Mapping[bytes, bytes] = field(default_factory=dict)
