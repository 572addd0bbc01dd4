# SPDX-License-Identifier: Apache-2.0
"""Text of others, for a terminal, a console, or one line of a log."""


def printable(text: str) -> str:
    """Return the text as one line, with control characters escaped: a terminal
    obeys them, and the text may come from others.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
