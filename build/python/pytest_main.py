# SPDX-License-Identifier: Apache-2.0
"""The main of every py_pytest target: pytest as a Bazel test.

Bazel's protocol: JUnit XML to $XML_OUTPUT_FILE; --test_filter (a -k expression
or, with ::, a node id); shards; scratch below $TEST_TMPDIR. A filter that
matches no case fails the test and lists the cases, except with
$TEST_FILTER_OF_MANY, which bazelw sets when other targets have the same filter.

Hypothesis runs the same examples every time, so that a cached result is
meaningful; to look for new ones: HYPOTHESIS_PROFILE=explore. With
$TEST_RANDOM_SEED, which Bazel sets to K in the K-th of several runs
(--runs_per_test; not in the first), the examples are those of that seed. A
target without any test fails.

With --netns, everything runs in new namespaces (see py_pytest).
"""

import atexit
import ctypes
import faulthandler
import os
import pathlib
import shutil
import signal
import sys
import tempfile

import pytest

# Names of cases in a message
_SHOWN = 40

# mount(2)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REC, MS_PRIVATE = 0x4000, 0x40000


def mount(source: str, target: str, fstype: str, flags: int) -> None:
    """Call mount(2). Raises OSError with the target."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), fstype.encode(), flags, None) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"mount {fstype or 'flags'}: {os.strerror(errno)}", target)


def enter_namespaces() -> None:
    """Do the same as `unshare -Urnm`, and mount a matching /run and /sys.

    This process, which still has one thread, enters them; children inherit it.
    """
    uid, gid = os.geteuid(), os.getegid()
    os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNS | os.CLONE_NEWNET)
    own = pathlib.Path("/proc/self")
    (own / "setgroups").write_text("deny")
    (own / "uid_map").write_text(f"0 {uid} 1")
    (own / "gid_map").write_text(f"0 {gid} 1")
    mount("", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV)
    # The kernel lets a new namespace mount sysfs no more freely than the old.
    mount("sysfs", "/sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)


def use_hypothesis_profile() -> None:
    """Load the profile of $HYPOTHESIS_PROFILE, or else the reproducible one."""
    import hypothesis
    from hypothesis.configuration import set_hypothesis_home_dir

    set_hypothesis_home_dir(os.environ["TEST_TMPDIR"])
    same = hypothesis.settings(deadline=None, database=None, print_blob=True)
    seeded = "TEST_RANDOM_SEED" in os.environ
    hypothesis.settings.register_profile("bazel", same, derandomize=not seeded)
    hypothesis.settings.register_profile("explore", same, max_examples=2000)
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "bazel"))


class Selection:
    """The cases to run, as a pytest plugin: of the filtered, each total-th.

    `all` and `matched` are ids, before and after the filter.
    """

    def __init__(self, total: int, index: int) -> None:
        self.total, self.index = total, index
        self.all: list[str] = []
        self.matched: list[str] = []

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Note a case; pytest calls it before -k removes some."""
        self.all.append(item.nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep this shard's cases; pytest calls it with the filtered ones."""
        self.matched += [item.nodeid for item in items]
        items[:] = items[self.index :: self.total]


def no_match(wanted: str, cases: list[str]) -> str:
    """Return the message for a filter without a match."""
    paths = [case.partition("::") for case in cases]
    names = [f"{path.rpartition('/')[2]}::{name}" for path, _, name in paths]
    shown = names[:_SHOWN] + ([f"... {len(names)} in all"] if len(names) > _SHOWN else [])
    return "\n    ".join(
        [
            f"{wanted} matches no case of this test. Give a part of a name,"
            " an expression such as 'one or two', or one of these:",
            *shown,
        ]
    )


def arguments(given: list[str], basetemp: str) -> list[str]:
    """Return pytest's arguments."""
    options = ["-c", "pyproject.toml", "--rootdir=.", "-p", "no:cacheprovider"]
    if (xml := os.environ.get("XML_OUTPUT_FILE")) is not None:
        options.append(f"--junitxml={xml}")
    options.append(f"--basetemp={basetemp}")
    if (seed := os.environ.get("TEST_RANDOM_SEED")) is not None:
        options.append(f"--hypothesis-seed={seed}")
    wanted = os.environ.get("TESTBRIDGE_TEST_ONLY")
    if wanted and "::" not in wanted:
        options += ["-k", wanted]
    return options + given


class NodeId:
    """Keep the cases of a node id, FILE::TEST, as a pytest plugin.

    pytest itself takes node ids, but stops where one does not exist.
    """

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Drop the others; pytest calls it with all."""
        items[:] = [item for item in items if self._matches(item.nodeid)]

    def _matches(self, case: str) -> bool:
        """Say whether it is the case, one of its parameters or its class's."""
        path, _, name = case.partition("::")
        file, _, rest = self.wanted.partition("::")
        return f"/{path}".endswith(f"/{file}") and (
            name == rest or name.startswith((f"{rest}[", f"{rest}::"))
        )


def main() -> int:
    """Set up, run pytest; return its exit status, or 5: nothing to run."""
    # Bazel ends a slow test by SIGTERM: print where it hung. pytest captures
    # fd 2, so write to a copy.
    faulthandler.register(signal.SIGTERM, file=os.dup(2), all_threads=True, chain=True)
    given = sys.argv[1:]
    if "--netns" in given:
        given.remove("--netns")
        enter_namespaces()
    os.environ.setdefault("TEST_TMPDIR", "/tmp")
    os.environ["HOME"] = os.environ["TEST_TMPDIR"]
    use_hypothesis_profile()
    # tmp_path must be short enough for the name of a unix socket (107 bytes),
    # which $TEST_TMPDIR is not.
    scratch = tempfile.mkdtemp(prefix="t", dir="/tmp")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    wanted = os.environ.get("TESTBRIDGE_TEST_ONLY")
    plugins: list[object] = [NodeId(wanted)] if wanted and "::" in wanted else []
    selection = Selection(int(os.environ.get("TEST_TOTAL_SHARDS", "1")), 0)
    if selection.total > 1:
        pathlib.Path(os.environ["TEST_SHARD_STATUS_FILE"]).touch()
        selection.index = int(os.environ["TEST_SHARD_INDEX"])
    status = pytest.main(arguments(given, scratch + "/p"), plugins=[*plugins, selection])
    if status != pytest.ExitCode.NO_TESTS_COLLECTED or not selection.all:
        return int(status)
    if not selection.matched and not os.environ.get("TEST_FILTER_OF_MANY"):
        print(no_match(f"--test_filter={wanted}" if wanted else "-k", selection.all), flush=True)
        return int(status)
    return 0


if __name__ == "__main__":
    sys.exit(main())
