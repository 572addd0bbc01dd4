# SPDX-License-Identifier: Apache-2.0
"""The options and subcommands of a program, by its source. Pure.

They are the literals of `add_argument` and `add_parser` in its main module and
in the modules of the tree that this imports and that are no programs. help_test
compares the options of each with those its --help prints.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """What a command line may have. flags: with their dashes. verbs: the
    subcommands; more: there are others, whose names are computed. compared:
    flags that the program looks for by itself.
    """

    flags: frozenset[str]
    verbs: frozenset[str]
    more: bool = False
    compared: frozenset[str] = frozenset()


def usage(path: str, files: Mapping[str, str]) -> Usage:
    """Return the usage of a program. path: its main module; files: texts."""
    flags, verbs, more = {"--help", "-h"}, set[str](), False
    compared = literals(files[path]).compared
    for module in [path, *_imported(path, files)]:
        found = literals(files[module])
        flags |= found.flags
        verbs |= found.verbs
        more = more or found.more
    return Usage(frozenset(flags), frozenset(verbs), more, compared)


def literals(text: str) -> Usage:
    """Return what one module's parsers add."""
    flags, verbs, more, compared = set[str](), set[str](), False, set[str]()
    parsed = ast.parse(text)
    methods = {}  # add = parser.add_argument
    for node in ast.walk(parsed):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Attribute(attr=attr)):
                methods[name] = attr
    for node in ast.walk(parsed):
        match node:
            case ast.Compare():  # if rest[:1] == ["--on"]
                compared |= {text for text in _strings(node) if re.fullmatch(r"--[a-z-]+", text)}
                continue
            case ast.Call(func=ast.Attribute(attr=method)):
                pass
            case ast.Call(func=ast.Name(id=name)):
                method = methods.get(name, "")
            case _:
                continue
        if any(
            isinstance(word.value, ast.Attribute) and word.value.attr == "SUPPRESS"
            for word in node.keywords
        ):
            continue  # hidden
        words = {str(one.value) for one in node.args if isinstance(one, ast.Constant)}
        if method == "add_argument":
            flags |= {word for word in words if word.startswith("-")}
        elif method == "add_parser":
            verbs |= words
            more = more or not words
    return Usage(frozenset(flags), frozenset(verbs), more, frozenset(compared))


def _strings(node: ast.AST) -> list[str]:
    return [
        one.value
        for one in ast.walk(node)
        if isinstance(one, ast.Constant) and isinstance(one.value, str)
    ]


def has_parser(text: str) -> bool:
    """Report whether a module makes or uses a parser of arguments."""
    return "argparse" in text or "command.parser(" in text


def _imported(path: str, files: Mapping[str, str]) -> list[str]:
    """Return the modules that a module imports and that have parsers."""
    found = []
    for node in ast.walk(ast.parse(files[path])):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [file for name in names if (file := name.replace(".", "/") + ".py") in files]
    return [
        file
        for file in dict.fromkeys(found)
        if has_parser(files[file]) and "__main__" not in files[file]
    ]
