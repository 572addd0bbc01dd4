# SPDX-License-Identifier: Apache-2.0
"""Parser against argparse's own, and what it loads."""

import argparse
import subprocess
import sys

import pytest

from osbase.imports.parser import Parser


def fill(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--file", metavar="FILE", default="a%b", help="a file; %(default)s")
    parser.add_argument("--two", metavar=("A", "B"), nargs=2, choices="xyz", help="of %(choices)s")
    return parser


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"COLUMNS": "50"}])
def test_its_output_is_that_of_argparse(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ours, theirs = (fill(kind(prog="p")) for kind in (Parser, argparse.ArgumentParser))
    assert ours.format_help() == theirs.format_help()
    assert ours.format_usage() == theirs.format_usage()


def test_wrong_arguments_are_refused_when_they_are_added() -> None:
    with pytest.raises(ValueError, match="badly formed help string"):
        Parser().add_argument("--file", help="100% of it")
    with pytest.raises(ValueError, match="length of metavar tuple"):
        Parser().add_argument("--two", metavar=("A", "B"), nargs=3)


def test_what_is_parsed_needs_no_colours() -> None:
    script = (
        "import sys\nfrom osbase.imports.parser import Parser\nparser = Parser()\n"
        "parser.add_argument('--file', help='a %(prog)s')\n"
        "print(parser.parse_args(['--file', 'f']).file, sorted({'_colorize', 'shutil'} & "
        "set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.stdout == "f []\n"
