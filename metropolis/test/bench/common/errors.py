# SPDX-License-Identifier: Apache-2.0
"""The error of all benchmarks."""


class BenchError(Exception):
    """A measurement is impossible; the text says which one and why."""
