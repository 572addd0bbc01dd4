# SPDX-License-Identifier: Apache-2.0
"""Whether the names in a snippet exist where it is printed. Pure.

A snippet of Python is judged by the modules of its package: the functions and
classes that it calls are defined there, and so is each attribute of the package
and of its modules. What is imported exists, arguments by name are parameters.
Limit: methods are not looked up, as types are not followed.
"""

import ast
import builtins
import re
from collections.abc import Iterable, Iterator, Mapping


def is_python(text: str) -> bool:
    """Report whether a block is Python that calls something."""
    try:
        parsed = ast.parse(text)
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Call) for node in ast.walk(parsed))


def python(path: str, text: str, files: Mapping[str, str]) -> list[str]:
    """Return what a snippet of Python has wrong. path: the document's."""
    folder = path.rpartition("/")[0]
    siblings = {
        file: ast.parse(source)
        for file, source in files.items()
        if file.endswith(".py") and file.rpartition("/")[0] == folder
    }
    defined = {name for tree in siblings.values() for name in _defined(tree)}
    modules = {file.rpartition("/")[2].removesuffix(".py"): tree for file, tree in siblings.items()}
    package = folder.rpartition("/")[2]
    snippet = ast.parse(text)
    loaded = [node.id for node in ast.walk(snippet) if isinstance(node, ast.Name)]
    roots = [
        node.value.id
        for node in ast.walk(snippet)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    ]
    stored = {
        node.id
        for node in ast.walk(snippet)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    # What is passed on is a value, also when a module has its name.
    bound = stored | {name for name in loaded if loaded.count(name) > roots.count(name)}
    found: list[str] = []
    for node in ast.walk(snippet):
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                found += _imported(module, [one.name for one in names], files)
            case ast.Call(func=ast.Name(id=name)):
                if name not in defined | stored and not hasattr(builtins, name):
                    found.append(f"{name} is not defined in {folder}")
                else:
                    found += _keywords(node, name, siblings.values())
            case ast.Attribute(value=ast.Name(id=root), attr=name):
                if root == package and root not in bound:
                    exported = _top(modules["__init__"]) if "__init__" in modules else set()
                    if name not in exported | set(modules):
                        found.append(f"{folder} has no {root}.{name}")
                elif root in modules and root not in bound:
                    if name not in _top(modules[root]):
                        found.append(f"{folder}/{root}.py has no {name}")
    return found


def _imported(module: str, names: list[str], files: Mapping[str, str]) -> Iterator[str]:
    """Yield the names that the tree does not have; others' are not known."""
    where = module.replace(".", "/")
    if module.partition(".")[0] not in ("build", "metropolis", "osbase"):
        return
    sources = [files[path] for path in (f"{where}.py", f"{where}/__init__.py") if path in files]
    top = {name for source in sources for name in _top(ast.parse(source))}
    for name in names:
        if name not in top and not any(
            path.startswith((f"{where}/{name}.py", f"{where}/{name}/")) for path in files
        ):
            yield f"{module} has no {name}"


def _defined(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).rpartition(".")[2]
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _top(tree: ast.Module) -> set[str]:
    """Return the names of a module."""
    found = set()
    for node in tree.body:
        match node:
            case (
                ast.ClassDef(name=name)
                | ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
            ):
                found.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found |= {one.asname or one.name for one in names}
            case ast.Assign(targets=targets):
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return found


def _keywords(call: ast.Call, name: str, trees: Iterable[ast.Module]) -> Iterator[str]:
    given = {word.arg for word in call.keywords if word.arg}
    if not given:
        return
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                taken = {one.arg for one in (*node.args.args, *node.args.kwonlyargs)}
                if not node.args.kwarg:
                    yield from (f"{name} has no argument {one}" for one in sorted(given - taken))
                return


def starlark(text: str, files: Mapping[str, str]) -> list[str]:
    """Return the rules that a snippet of a BUILD file calls and nobody has."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        pattern = re.compile(rf"^(def )?{re.escape(node.func.id)}(\(| = rule)", re.M)
        sources = [
            text for path, text in files.items() if path.endswith(".bzl") and pattern.search(text)
        ]
        if not sources and node.func.id != "load":
            found.append(f"no .bzl file has {node.func.id}")
    return found
