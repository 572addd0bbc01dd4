# SPDX-License-Identifier: Apache-2.0
"""A transaction on the store: what must be so, and what becomes so then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Put:
    """A key's new value. lease: what it ends with; 0: nothing."""

    key: bytes
    value: bytes
    lease: int = 0


@dataclass(frozen=True)
class Transaction:
    """All or nothing: when each key of `compare` has that mod_revision (0: is
    not there), and each of `values` that value, `puts` and `deletes` are done.
    A key is in one of them, once.

    values: what a revision alone does not say in a store that was restored,
    where revisions count on from an older one.
    """

    compare: Mapping[bytes, int]
    puts: tuple[Put, ...] = ()
    deletes: tuple[bytes, ...] = ()
    values: Mapping[bytes, bytes] = field(default_factory=dict)
