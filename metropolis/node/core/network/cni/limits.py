# SPDX-License-Identifier: Apache-2.0
"""The capability bandwidth: its JSON, to the part of a request; pure.

A configuration may have the same keys itself, as that of CNI's `bandwidth`,
and then they come first, as there: the capability is not looked at.

CNI's CONVENTIONS.md has the keys: ingressRate, ingressBurst, egressRate,
egressBurst; rates in bits per second, bursts in bits. Keys are in any case:
go-cni sets no JSON names, so containerd sends IngressRate. 0, null and absent
are no limit. Everything else is an error that names the key, not a guess.
"""

from typing import Any, Final

from metropolis.node.core.network.cni import shapes
from metropolis.node.core.network.cni.names import in_words_of_cni
from metropolis.node.core.network.workloads import bandwidth
from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import PartText

_KEYS: Final = {
    key.lower(): key for key in ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
}
_BITS: Final = 64


def is_key(key: str) -> bool:
    """Return whether it is one of the keys, in any case."""
    return key.lower() in _KEYS


def part_of(value: object, source: str = "") -> tuple[PartText, ...]:
    """Return the part of the request; (): no limit is asked for.

    source: where the value is from, for errors; "": the configuration. Raises
    InvalidArgument, its field `bandwidth`.
    """
    dot = f"{source}." if source else ""
    fields = shapes.fields(value, _KEYS, source or "the configuration", bandwidth.FIELD)
    numbers = {name: _number(number, f"{dot}{name}") for name, number in fields.items()}
    ways = (
        bandwidth.Limit(numbers.get(f"{way}Rate", 0), numbers.get(f"{way}Burst", 0))
        for way in ("ingress", "egress")
    )
    try:
        return bandwidth.part_of(bandwidth.Bandwidth(*ways))
    except InvalidArgument as error:
        text = in_words_of_cni(str(error).removeprefix(f"{bandwidth.FIELD}: "))
        raise InvalidArgument(f"{dot}{text}", field=bandwidth.FIELD) from error


def _number(value: Any, path: str) -> int:
    # A bool is an int in Python, and a float may be whole.
    if type(value) is not int or not 0 <= value < 1 << _BITS:
        text = f"{path} is {value!r:.80}: a number of bits is expected"
        raise InvalidArgument(text, field=bandwidth.FIELD)
    return value
