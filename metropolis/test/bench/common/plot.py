# SPDX-License-Identifier: Apache-2.0
"""Colours and style of pictures that matplotlib draws."""

from typing import Any

BLUE, GREY, RED = "#1f6fb4", "#8c8c8c", "#c8553d"


def tidy(axes: Any, along: str) -> None:
    """Leave a light grid along an axis, and two sides of the frame."""
    axes.grid(axis=along, which="major", color="#dddddd")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
