# SPDX-License-Identifier: Apache-2.0
"""containerd's metrics, in Prometheus' text format. Pure.

containerd times each operation of its network plugin in the same way, whether
that is CNI's programs, our shim or our library.
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
    """The text is not in the format; the message names the line."""


@dataclass(frozen=True, slots=True)
class Network:
    """An operation of the network plugin: how often it was done, the seconds of
    all together, how often it failed.
    """

    count: int = 0
    seconds: float = 0.0
    errors: int = 0

    def since(self, before: Network) -> Network:
        """Return the operations after `before`."""
        return Network(
            self.count - before.count,
            self.seconds - before.seconds,
            self.errors - before.errors,
        )


def values(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield each sample: name, labels, value. Raises MetricsError."""
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
    """Return the operations SET_UP or TEAR_DOWN so far; zeros if none."""
    found = {_LATENCY + "_count": 0.0, _LATENCY + "_sum": 0.0, _ERRORS: 0.0}
    for name, labels, value in values(text):
        if name in found and labels.get("operation_type") == operation:
            if not math.isfinite(value):
                raise MetricsError(f"{name} is {value}")
            found[name] = value
    count, seconds, errors = found.values()
    return Network(int(count), seconds, int(errors))
