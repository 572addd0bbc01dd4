# SPDX-License-Identifier: Apache-2.0
"""An ArgumentParser that loads what prints help only when it prints."""

import argparse
from typing import Any


class Parser(argparse.ArgumentParser):
    """As argparse's, in every option and output.

    Python 3.14 checks each added argument with the formatter of the help, which
    loads terminal sizes, colours and, by these, dataclasses. The overridden
    methods are private: where they are absent, nothing is gained or lost.
    """

    _checks: argparse.HelpFormatter | None = None

    def _get_validation_formatter(self) -> argparse.HelpFormatter:
        if self._checks is None:
            self._checks = _Unprinted(self.prog, width=80)
        return self._checks


class _Unprinted(argparse.HelpFormatter):
    def _set_color(self, *_: Any, **__: Any) -> None:
        """Colours are for what is printed."""
