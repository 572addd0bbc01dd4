# SPDX-License-Identifier: Apache-2.0
"""Each variable that a document or --help names reaches programs and tests.

The documents and sources are those of the tree (see build/lint). What arrives
is shown by the real `enter`, with this test's own root as the devroot.
"""

import fnmatch
import pathlib
import re
import subprocess

from build.lint import tree

ROOT = tree.workspace()
ENTER = ROOT / "build/devroot/enter"

# How documents, --help and comments write a variable that users set ...
DOCUMENTED = re.compile(
    r"(?:--test_env=|export |\$\{?|environ\.get\(\")([A-Z][A-Z0-9]*_[A-Z0-9_]+)"
    r"|\b((?:METROCTL|METROPOLIS|DEVROOT)_[A-Z]+)\b"
    r"|`([A-Z][A-Z0-9]*_[A-Z0-9_]+)="
)
# ... and those that are another's to set.
SET_BY = {
    "Bazel": ("BUILD_*", "COVERAGE_*", "TEST_*", "TESTBRIDGE_*", "XML_OUTPUT_FILE"),
    "BUILD files": ("RPC_SERVER", "CGO_ENABLED", "VARIANT_ID"),
    "bazelw, for its own scripts": ("DEVROOT_CACHE", "DEVROOT_CWD", "DEVROOT_DEFS", "DEVROOT_USER"),
    "bazelw, for them": ("DEVROOT_WORKSPACE", "BAZELISK_SKIP_WRAPPER"),
    "Bazelisk": ("BAZEL_REAL",),
    "a container runtime": ("CNI_*", "CNIPROXY_*"),
    "a test, for its fake": ("FAKE_*",),
    "enter": ("CURL_CA_BUNDLE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "BASH_SOURCE"),
    "apt, for its own words": ("REPO_URI",),
}
# Their variables are those of fakes.
NOT_READ = (
    "build/devroot/bazelw_test.py",
    "build/devroot/variables_test.py",
    "build/docs/checks_test.py",
)
# Bazel sets it too, but for a single run users do.
USERS = ("TEST_RANDOM_SEED",)


def listed() -> list[str]:
    """Return the names and patterns of build/devroot/variables."""
    lines = (ROOT / "build/devroot/variables").read_text().splitlines()
    return [line.split()[0] for line in lines if line and not line.startswith("#")]


def found() -> dict[str, set[str]]:
    """Return the variables that users set, each with the files that name it."""
    names: dict[str, set[str]] = {}
    others = [pattern for patterns in SET_BY.values() for pattern in patterns]
    for path in tree.files(ROOT):
        if not path.endswith((".md", ".py", ".bazel", "bazelw")) or path in NOT_READ:
            continue
        for groups in DOCUMENTED.findall((ROOT / path).read_text()):
            name = next(filter(None, groups))
            if name in USERS or not any(fnmatch.fnmatchcase(name, other) for other in others):
                names.setdefault(name, set()).add(path)
    return names


FOUND = found()
PASSED_TO_TESTS = re.findall(r"^build.*", (ROOT / ".bazelrc").read_text(), re.MULTILINE)


def entered(folder: pathlib.Path, environ: dict[str, str]) -> dict[str, str]:
    """Return the environment of a program in a devroot, as bazelw enters it."""
    root = folder / "root"
    root.mkdir()
    home = folder / "home"
    home.mkdir()
    # The devroot has util-linux without it.
    tools = folder / "tools"
    tools.mkdir()
    (tools / "pivot_root").symlink_to("/usr/bin/busybox")
    script = 'mount --rbind / "$1" && exec bash "$0" "$1" env -0'
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script, str(ENTER), str(root)],
        env={
            "PATH": f"/usr/bin:/bin:{tools}",
            "HOME": str(home),
            "DEVROOT_WORKSPACE": str(folder),
            "DEVROOT_CACHE": str(folder),
            "DEVROOT_CWD": str(folder),
            "DEVROOT_USER": "user",
            **environ,
        },
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = filter(None, done.stdout.split("\0"))
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_the_documented_ones_are_found() -> None:
    """The search works: it finds those of each way to write them."""
    assert {
        "CHURN_PODS",  # in a test's source
        "DEVROOT_MIRROR",  # bazelw's help
        "FUZZ_SECONDS",  # a BUILD file
        "HYPOTHESIS_PROFILE",  # README
        "METROCTL_CA",  # --help of metroctl
        "METROPOLIS_ACCEL",
        "TEST_RANDOM_SEED",
        "XDG_CACHE_HOME",
    } <= FOUND.keys()


def test_each_arrives(tmp_path: pathlib.Path) -> None:
    environ = {name: f"value of {name}; $(false) 'x'" for name in FOUND}
    environ["XDG_CACHE_HOME"] = str(tmp_path)
    arrived = entered(tmp_path, environ | {"SECRET": "x", "METRO": "x", "NOTMETROCTL_X": "x"})
    missing = {name: paths for name, paths in FOUND.items() if arrived.get(name) != environ[name]}
    assert not missing, "add them to build/devroot/variables, or SET_BY has who sets them"
    assert not {"SECRET", "METRO", "NOTMETROCTL_X"} & arrived.keys()
    assert arrived["HOME"] == str(tmp_path / "home")


def test_without_any_nothing_is_set(tmp_path: pathlib.Path) -> None:
    arrived = entered(tmp_path, {})
    patterns = [pattern for pattern in listed() if pattern != "TERM"]  # bash sets it
    assert not [n for n in arrived if any(fnmatch.fnmatchcase(n, p) for p in patterns)]


def test_those_of_tests_reach_tests() -> None:
    """`--test_env=NAME` in .bazelrc passes an exported variable to tests."""
    passed = set(re.findall(r"--test_env=(\w+)(?:\s|$)", "\n".join(PASSED_TO_TESTS)))
    read = {
        name
        for name, paths in FOUND.items()
        if any(path.endswith("_test.py") for path in paths) or name in USERS
    }
    read |= {"METROPOLIS_ACCEL", "HYPOTHESIS_PROFILE"}
    read -= {name for name in read if name.startswith(("METROCTL_", "DEVROOT_", "XDG_"))}
    assert read | {"TEST_FILTER_OF_MANY"} == passed  # bazelw sets it
    assert not [name for name in passed if name not in listed()]
