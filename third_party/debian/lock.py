# SPDX-License-Identifier: Apache-2.0
"""The pure half of the Debian lock: packages.in, an archive index, and the lock
file made of both.

packages.in is written by hand and names packages. `update` writes
packages.lock, which has the exact version of each, its path in the pool of any
Debian mirror, and its SHA-256. Neither has a host name.

Why not a solver: an image lists its packages one by one. That list is short,
reviewable, and smaller than any dependency closure.
"""

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

# Debian policy 5.6.1: package names. A label must be one too.
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
# Prefix of a source package; its archive is upstream's tar.
SOURCE = "src:"
_ORIG = re.compile(r"([0-9a-f]{64}) +([0-9]+) +([^ /]+\.orig\.tar\.(?:gz|xz))")


class LockError(Exception):
    """packages.in or the archive index is invalid."""


@dataclass(frozen=True)
class Wanted:
    """One line of packages.in: the label and the way to the package.

    path[0] is a package; each further element is a shell pattern that exactly
    one dependency of the package before it must match. Or path[0] alone is
    `src:` and a source package.
    """

    name: str
    path: tuple[str, ...]


@dataclass(frozen=True)
class Pin:
    """One entry of the lock. `filename` is relative to a mirror's root."""

    package: str
    version: str
    filename: str
    sha256: str
    size: int


type Stanza = Mapping[str, str]


def parse_wanted(text: str) -> list[Wanted]:
    """Read packages.in.

    Raises LockError, naming the line, for bad syntax and repeated names.
    """
    wanted: dict[str, Wanted] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        name, sep, rest = (part.strip() for part in line.partition("="))
        path = tuple(part.strip() for part in rest.split(">")) if sep else (name,)
        if not _NAME.fullmatch(name):
            raise LockError(f"packages.in:{number}: {name!r} is not a package name")
        source = path[0].startswith(SOURCE) and len(path) == 1
        first = path[0].removeprefix(SOURCE) if source else path[0]
        if not _NAME.fullmatch(first) or not all(path):
            raise LockError(f"packages.in:{number}: {rest!r} is not 'PACKAGE > PATTERN...'")
        if name in wanted:
            raise LockError(f"packages.in:{number}: {name} is there twice")
        wanted[name] = Wanted(name, path)
    return list(wanted.values())


def parse_index(text: str) -> dict[str, Stanza]:
    """Parse an archive index (Debian policy 5.1) to stanzas by package name.

    Continuation lines are dropped: no field we use has any. The first of
    several versions counts, as apt-cache lists the candidate first.
    """
    index: dict[str, Stanza] = {}
    for block in re.split(r"\n[ \t]*\n", text):
        stanza: dict[str, str] = {}
        for line in block.splitlines():
            if line[:1] not in " \t" and ":" in line:
                key, _, value = line.partition(":")
                stanza[key] = value.strip()
        if "Package" in stanza:
            index.setdefault(stanza["Package"], stanza)
    return index


def resolve_source(wanted: Wanted, text: str) -> Pin:
    """Find upstream's tar in the archive's stanzas of one source package.

    The last stanza counts. Raises LockError when it has no such tar, or more.
    """
    package = wanted.path[0].removeprefix(SOURCE)
    blocks = [block for block in re.split(r"\n[ \t]*\n", text) if block.strip()]
    stanza = parse_index(blocks[-1]).get(package, {}) if blocks else {}
    if not {"Version", "Directory"} <= stanza.keys():
        raise LockError(f"{SOURCE}{package}: not in the archive's index; correct packages.in")
    found = _ORIG.findall(blocks[-1])
    if len(found) != 1:
        raise LockError(f"{SOURCE}{package}: {len(found)} upstream tars, one is expected")
    ((sha256, size, file),) = found
    filename = f"{stanza['Directory']}/{file}"
    return Pin(SOURCE + package, stanza["Version"], filename, sha256, int(size))


def dependencies(stanza: Stanza) -> list[str]:
    """Return names in Depends and Pre-Depends, with alternatives, in order."""
    fields = (stanza.get("Pre-Depends", ""), stanza.get("Depends", ""))
    names = (
        re.match(r"[a-z0-9+.-]+", part.strip()) for part in re.split(r"[,|]", ",".join(fields))
    )
    return [match.group() for match in names if match]


def resolve(wanted: Wanted, index: Mapping[str, Stanza]) -> Pin:
    """Follow the path of `wanted` through `index` to a package.

    Raises LockError when a package or a field is missing, or when a pattern
    does not match exactly one dependency.
    """
    package = wanted.path[0]
    for pattern in wanted.path[1:]:
        deps = dependencies(_stanza(index, package))
        found = sorted(set(fnmatch.filter(deps, pattern)))
        if len(found) != 1:
            raise LockError(
                f"{wanted.name}: {len(found)} dependencies of {package} match {pattern!r}: "
                f"{', '.join(found or deps)}"
            )
        package = found[0]
    stanza = _stanza(index, package)
    try:
        return Pin(
            package,
            stanza["Version"],
            stanza["Filename"].removeprefix("./"),
            stanza["SHA256"],
            int(stanza["Size"]),
        )
    except KeyError as e:
        raise LockError(f"{package}: the archive's index has no {e.args[0]}") from e


def _stanza(index: Mapping[str, Stanza], package: str) -> Stanza:
    if package not in index:
        raise LockError(f"{package}: not in the archive's index; correct packages.in")
    return index[package]


def render_lock(pins: Mapping[str, Pin]) -> str:
    """Return the lock's text: JSON, one short block per package, sorted."""
    packages = {name: asdict(pins[name]) for name in sorted(pins)}
    return json.dumps({"packages": packages}, indent=1) + "\n"


def parse_lock(text: str) -> dict[str, Pin]:
    """Parse the output of render_lock. Raises LockError for another text."""
    try:
        return {name: Pin(**entry) for name, entry in json.loads(text)["packages"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise LockError(f"packages.lock is damaged: {e!r}") from e


def changes(old: Mapping[str, Pin], new: Mapping[str, Pin]) -> Iterable[str]:
    """Yield lines for reviewers with the changes between two locks."""
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before is None and after is not None:
            yield f"+ {name} {after.version}"
        elif after is None and before is not None:
            yield f"- {name} {before.version}"
        elif before is not None and after is not None and before != after:
            yield f"  {name} {before.version} -> {after.version}"
