# SPDX-License-Identifier: Apache-2.0
"""The reader of third_party/python/requirements.lock: pure, so that it is tested.

The lock is a pip requirements file in a narrow form: comments, blank lines, and
entries `name==version --hash=sha256:HEX ...`, continued by a backslash. Anything
else (a marker, an extra, a URL, an unhashed entry) is an error, not a guess.
"""

REFRESH = "./bazelw run //third_party/python:update"

def normalise(name):
    """Converts a distribution's name to a target name: lower case, - and . become _."""
    return name.lower().replace("-", "_").replace(".", "_")

def _is_hash(text):
    if len(text) != 64:
        return False
    for char in text.elems():
        if char not in "0123456789abcdef":
            return False
    return True

def _entry(words, where):
    pin = words[0].split("==")
    if len(pin) != 2 or not pin[0] or not pin[1]:
        return None, "%s: %r is not name==version" % (where, words[0])
    for char in (pin[0] + pin[1]).elems():
        if not (char.isalnum() or char in "-_.+!"):
            return None, "%s: %r in %r" % (where, char, words[0])
    hashes = []
    for word in words[1:]:
        digest = word.removeprefix("--hash=sha256:")
        if digest == word or not _is_hash(digest):
            return None, "%s: %r is not --hash=sha256:HEX" % (where, word)
        hashes.append(digest)
    if not hashes:
        return None, "%s: %r has no hash" % (where, words[0])
    return struct(name = normalise(pin[0]), version = pin[1], hashes = hashes), None

def parse_lock(text, where = "requirements.lock"):
    """Parses a lock.

    Args:
      text: the file's contents
      where: the file's name in errors

    Returns:
      (packages, None) or (None, error): packages is a list of structs with
      name (normalised), version and hashes (hex strings); error is a string
      that names the line and the refresh command.
    """
    packages = []
    seen = {}
    pending = []
    first = 0  # the line the present entry began on; 0 between entries
    for number, line in enumerate(text.split("\n"), start = 1):
        line = line.strip()
        if not first:
            if not line or line.startswith("#"):
                continue
            first = number
        pending += [word for word in line.removesuffix("\\").split(" ") if word]
        if line.endswith("\\"):
            continue
        at = "%s:%d" % (where, first)
        package, error = _entry(pending, at) if pending else (None, at + ": empty entry")
        if not error and package.name in seen:
            error = "%s: %s is pinned twice" % (at, package.name)
        if error:
            return None, error + "; refresh it by: " + REFRESH
        seen[package.name] = True
        packages.append(package)
        pending = []
        first = 0
    if first:
        return None, "%s:%d: the file ends within an entry; refresh it by: %s" % (where, first, REFRESH)
    return packages, None
