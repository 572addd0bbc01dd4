# SPDX-License-Identifier: Apache-2.0
"""The targets of the tree, by BUILD files and macros. Pure.

Starlark is parsed as Python, which its syntax is a part of. A target is the
`name` of a call in a BUILD file, and what a macro of the tree makes of it
(`name + "_disk"`). Limits: names that a comprehension computes are found only
if it iterates over literal strings.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_LABEL = re.compile(r"//[\w./-]*(?::[\w./+-]+)?")
# In texts, `//x/...`, `//x:y_test` are examples.
PLACEHOLDER = re.compile(r"//x(/\.\.\.|:[\w]+)?$")


@dataclass
class Targets:
    """binaries: label of each py_binary -> its main module's path."""

    names: dict[str, set[str]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    binaries: dict[str, str] = field(default_factory=dict)

    def resolve(self, label: str) -> str | None:
        """Return the label in full, for an alias its target; None if there is
        no such target. Patterns (`/...`, `:all`) stay.
        """
        package, _, name = label.removeprefix("//").partition(":")
        if package == "..." or package.endswith("/..."):
            below = package.removesuffix("...").rstrip("/")
            inside = (p for p in self.names if p == below or not below or p.startswith(f"{below}/"))
            return label if any(inside) else None
        if package not in self.names:
            return None
        name = name or package.rpartition("/")[2]
        if name == "all":
            return label
        if name not in self.names[package]:
            return None
        full = f"//{package}:{name}"
        return self.aliases.get(full, full)


def read(files: dict[str, str]) -> Targets:
    """Return the targets of a tree. files: all paths, as files are targets,
    too; the texts only of BUILD files and .bzl files are read.
    """
    macros: dict[str, set[str]] = {}
    for path, text in files.items():
        if path.endswith(".bzl"):
            macros |= _macros(text)
    found = Targets()
    for path in files:
        if path == "BUILD.bazel" or path.endswith("/BUILD.bazel"):
            found.names[path.rpartition("/")[0]] = set()
    for path in files:
        folder = path.rpartition("/")[0]
        while folder and folder not in found.names:
            folder = folder.rpartition("/")[0]
        found.names.setdefault(folder, set()).add(path[len(folder) :].lstrip("/"))
    for path, text in files.items():
        if path == "BUILD.bazel" or path.endswith("/BUILD.bazel"):
            _package(found, path.rpartition("/")[0], text, macros)
    for label, target in found.aliases.items():
        found.aliases[label] = found.resolve(target) or target
    return found


def _package(found: Targets, package: str, text: str, macros: dict[str, set[str]]) -> None:
    for rule, name, call in calls(text):
        label = f"//{package}:{name}"
        found.names[package] |= {name} | {form.replace("{}", name) for form in macros.get(rule, ())}
        values = {word.arg: word.value for word in call.keywords}
        actual = values.get("actual")
        if rule == "alias" and isinstance(actual, ast.Constant):
            target = str(actual.value)
            found.aliases[label] = f"//{package}{target}" if target.startswith(":") else target
        if rule == "genrule" and isinstance(outs := values.get("outs"), ast.List):
            found.names[package] |= {
                str(one.value) for one in outs.elts if isinstance(one, ast.Constant)
            }
        if rule == "py_binary":
            main = values.get("main")
            path = str(main.value) if isinstance(main, ast.Constant) else f"{name}.py"
            found.binaries[label] = f"{package}/{path}"


def calls(text: str) -> Iterator[tuple[str, str, ast.Call]]:
    """Yield rule, name and call of each target."""
    tree = ast.parse(text)
    lists = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    loops: dict[ast.Call, ast.comprehension] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ListComp) and isinstance(node.elt, ast.Call):
            loops[node.elt] = node.generators[0]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        for word in node.keywords:
            if word.arg == "name":
                for name in _names(word.value, loops.get(node), lists):
                    yield node.func.id, name, node


def _names(
    value: ast.expr, loop: ast.comprehension | None, lists: dict[str, ast.expr]
) -> Iterable[str]:
    if isinstance(value, ast.Constant):
        return [str(value.value)]
    match loop:
        case ast.comprehension(target=ast.Name(id=variable), iter=source):
            pass
        case ast.comprehension(
            target=ast.Tuple(elts=[ast.Name(id=variable), *_]),
            iter=ast.Call(func=ast.Attribute(value=source, attr="items")),
        ):
            pass
        case _:
            return []
    if isinstance(source, ast.Name):
        source = lists.get(source.id, source)
    match source:
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Dict(keys=items):
            literal = [str(one.value) for one in items if isinstance(one, ast.Constant)]
        case _:
            return []
    form = _form(value, variable)
    return [form.replace("{}", item) for item in literal] if form else []


def _form(value: ast.expr, variable: str) -> str | None:
    """Return a name's form, "{}_disk" for `name + "_disk"`; None: another."""
    match value:
        case ast.Name(id=found) if found == variable:
            return "{}"
        case ast.Constant(value=str(text)):
            return text
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            first, second = _form(left, variable), _form(right, variable)
            return None if first is None or second is None else first + second
        case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Mod(), right=ast.Name(id=found)):
            return text.replace("%s", "{}") if found == variable else None
    return None


def _macros(text: str) -> dict[str, set[str]]:
    """Return what each macro makes of its name."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            forms = {
                form
                for call in ast.walk(node)
                if isinstance(call, ast.Call)
                for word in call.keywords
                if word.arg == "name" and (form := _form(word.value, "name")) and "{}" in form
            }
            found[node.name] = forms
    return found


def mentioned(text: str) -> list[str]:
    """Return the labels in a text."""
    return [
        found.rstrip(".") if not found.endswith("...") else found for found in _LABEL.findall(text)
    ]
