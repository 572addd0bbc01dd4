# SPDX-License-Identifier: Apache-2.0
"""Shapes of JSON that several requests have: lists of objects, and objects
whose keys are in any case, as go-cni sets no JSON names; pure.

Everything else is an error that names the place, not a guess. field: of the
InvalidArgument that is raised.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from metropolis.node.core.network.workloads.errors import InvalidArgument


def entries(value: object, path: str, field: str) -> Iterator[tuple[str, object]]:
    """Yield the entries of a list, each with its path."""
    if not isinstance(value, list):
        raise InvalidArgument(f"{path} is {value!r:.80}: a list is expected", field=field)
    for i, entry in enumerate(value):
        yield f"{path}[{i}]", entry


def an_object(value: object, path: str, field: str) -> dict[str, Any]:
    """Return the value if it is an object."""
    if not isinstance(value, dict):
        raise InvalidArgument(f"{path} is {value!r:.80}: an object is expected", field=field)
    return value


def fields(value: object, keys: Mapping[str, str], path: str, field: str) -> dict[str, Any]:
    """Return an object's fields by their proper keys. JSON's null is Go's
    absent. keys: the proper ones, by lower case.
    """
    found: dict[str, Any] = {}
    for key, one in an_object(value, path, field).items():
        name = keys.get(key.lower())
        if name is None:
            known = ", ".join(keys.values())
            raise InvalidArgument(f"{path} has {key!r:.80}: {known} are known", field=field)
        if name in found:
            raise InvalidArgument(f"{path} has {name} twice, in different case", field=field)
        found[name] = one
    return {name: one for name, one in found.items() if one is not None}
