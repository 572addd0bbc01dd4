# SPDX-License-Identifier: Apache-2.0
"""For the commands of all benchmarks: progress, and arguments."""

import sys


def say(message: str) -> None:
    """Print progress on standard error."""
    print(message, file=sys.stderr, flush=True)


def positive(text: str) -> int:
    """Parse a number of at least 1, for argparse. Raises ValueError."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number
