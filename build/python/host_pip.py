# SPDX-License-Identifier: Apache-2.0
"""Run pip in the host's configuration, tolerating broken extra sources.

A host may configure further indexes and wheel directories (extra-index-url,
find-links) that we do not need, and pip fails completely if one is not
available. So when pip fails, it runs once more with its main index alone. That
is safe, since only files with the right hashes are accepted.
"""

import ast
import os
import subprocess
import sys

DROPPED = ("extra-index-url", "find-links")


class PipError(Exception):
    """pip failed; its messages are the text."""


def main_index_only(config: str, environ: dict[str, str]) -> dict[str, str]:
    """Return an environment with the settings of `config`, except DROPPED.

    `config` is the output of `pip config list`, lines section.name='value'.
    Lines of files count if they are global or for install.
    """
    environ = {**environ, "PIP_CONFIG_FILE": os.devnull}
    settings: dict[str, str] = {}
    for line in config.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.partition(".")
        if section in ("global", "install") and value:
            settings[name] = str(ast.literal_eval(value))
    for name, value in settings.items():
        environ.setdefault("PIP_" + name.upper().replace("-", "_"), value)
    for name in DROPPED:
        environ.pop("PIP_" + name.upper().replace("-", "_"), None)
    return environ


def _pip(arguments: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environ
    )


def pip(*arguments: str) -> None:
    """Run pip; on failure once more without extra sources, then PipError."""
    environ = {**os.environ, "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    first = _pip([*arguments], environ)
    if first.returncode == 0:
        return
    config = _pip(["config", "list"], environ).stdout
    second = _pip([*arguments], main_index_only(config, environ))
    if second.returncode:
        raise PipError(
            f"{first.stderr.strip()}\nand without extra-index-url and find-links:\n"
            f"{second.stderr.strip()}"
        )
