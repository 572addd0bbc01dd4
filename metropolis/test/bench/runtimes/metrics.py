# SPDX-License-Identifier: Apache-2.0
"""containerd's metrics, as Prometheus' text format has them. Pure.

containerd times each operation of its network plugin; whatever stands in the
plugin's place (CNI's programs, our shim, our library) is timed alike.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

# internal/cri/server/metrics.go; docker/go-metrics appends the unit to a name
# that has it already.
_LATENCY = "containerd_cri_network_plugin_operations_duration_seconds_seconds"
_ERRORS = "containerd_cri_network_plugin_operations_errors_total"
SET_UP = "set_up_pod"
TEAR_DOWN = "tear_down_pod"

_LINE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?")
_LABEL = re.compile(r'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')


class MetricsError(ValueError):
    """Text that is no metrics; says which line."""


@dataclass(frozen=True, slots=True)
class Network:
    """What the network plugin has done of one operation: how often, how many
    seconds all of them took together, how often it failed.
    """

    count: int = 0
    seconds: float = 0.0
    errors: int = 0

    def since(self, before: Network) -> Network:
        """What was done after `before`."""
        return Network(
            self.count - before.count,
            self.seconds - before.seconds,
            self.errors - before.errors,
        )


def values(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Each sample: name, labels, value. Raises MetricsError."""
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        try:
            if found is None:
                raise ValueError
            name, labels, value = found.groups()
            yield name, dict(_LABEL.findall(labels or "")), float(value)
        except ValueError:
            raise MetricsError(f"not a metric: {line[:80]!r}") from None


def network(text: str, operation: str) -> Network:
    """What was done of SET_UP or TEAR_DOWN so far; nothing: all zero."""
    found = {_LATENCY + "_count": 0.0, _LATENCY + "_sum": 0.0, _ERRORS: 0.0}
    for name, labels, value in values(text):
        if name in found and labels.get("operation_type") == operation:
            if not math.isfinite(value):
                raise MetricsError(f"{name} is {value}")
            found[name] = value
    count, seconds, errors = found.values()
    return Network(int(count), seconds, int(errors))
