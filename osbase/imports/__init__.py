# SPDX-License-Identifier: Apache-2.0
"""A program's start: modules that load when they are used, or not at all.

    defer(names)     `import name` binds a module that loads at the first use of
                     an attribute
    without(names)   `import name` raises ImportError: for optional modules
    allow(name)      from now on it does not

Libraries import much that a service does not use when it starts, or ever:
logging imports tracebacks in colour, grpc its asyncio API, asyncio TLS. Both
functions affect the whole process, and modules that are imported later: so the
program calls them before its other imports.

Why not importlib.util.LazyLoader: it loads a module as soon as a second one
imports it. Python 3.15 has both in the language (PEP 810, `lazy import` and a
filter); then this package goes.

Limits: a module whose body uses the deferred one, `from name import ...`
included, loads it at once. The body of a deferred module must not need what
imports it to be complete. What is wrong in it is found at its first use. The
import of a deferred package's submodule does not load the package.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader


def defer(names: Iterable[str]) -> None:
    """Let the modules load when they are used. Those that are imported already
    stay as they are; built-in modules cannot be deferred.
    """
    sys.meta_path.insert(0, _Finder(frozenset(names)))


def without(names: Iterable[str]) -> None:
    """Let imports of the modules fail, unless they were imported already.

    For modules whose importers do without: `ssl` is optional in asyncio,
    `_hashlib` (OpenSSL) in hashlib.
    """
    for name in names:
        # As importlib's reference says for this.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def allow(name: str) -> None:
    """Let later imports of a refused module succeed, for who needs it."""
    if name in sys.modules and sys.modules[name] is None:
        del sys.modules[name]


def waits(module: ModuleType) -> bool:
    """Return whether the module is deferred and was not used yet."""
    return isinstance(module.__loader__, _Waiting)


class _Finder:
    """Finds the modules on sys.path like others, with a loader that waits."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        if name not in self._names:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            # A loader by its methods alone: importlib.abc has not been loaded.
            spec.loader = _Waiting(spec.loader)  # type: ignore[assignment]
        return spec


class _Waiting:
    """A loader that runs the module's body when an attribute is missing."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See importlib.abc.Loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Put a `__getattr__` (PEP 562) in place of the contents."""
        lock = threading.RLock()
        loader = self._loader
        begun = False

        def __getattr__(name: str) -> Any:  # noqa: N807
            nonlocal begun
            # `from a import b` asks whether a is a package.
            if name == "__path__":
                raise AttributeError(name)
            # Other threads wait here; this one comes again if the body uses
            # the module, as in a circle of imports.
            with lock:
                if not begun:
                    begun = True
                    spec = module.__spec__
                    assert spec is not None
                    spec.loader = module.__loader__ = loader
                    try:
                        loader.exec_module(module)
                    except BaseException:
                        begun = False
                        raise
                    if module.__dict__.get("__getattr__") is __getattr__:
                        del module.__getattr__
            found = module.__dict__
            if name in found:
                return found[name]
            if (own := found.get("__getattr__", __getattr__)) is not __getattr__:
                return own(name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = __getattr__  # type: ignore[method-assign]
