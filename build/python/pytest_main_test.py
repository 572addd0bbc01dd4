# SPDX-License-Identifier: Apache-2.0
"""pytest_main as Bazel runs it: the test protocol, with small tests."""

import os
import pathlib
import signal
import subprocess
import sys
from xml.etree import ElementTree

import pytest

RUNNER = pathlib.Path("build/python/pytest_main.py").absolute()
TESTS = """\
import pytest
from hypothesis import given, strategies

def test_one():
    pass

@pytest.mark.parametrize("n", range(3))
def test_two(n):
    pass

async def test_async():
    pass

@given(strategies.integers())
def test_property(n):
    assert isinstance(n, int)
"""


class Target:
    """A py_pytest target in a separate folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        (folder / "pyproject.toml").write_bytes(pathlib.Path("pyproject.toml").read_bytes())

    def command(self, *arguments: str) -> list[str]:
        """Return Bazel's command for it."""
        return [sys.executable, "-P", str(RUNNER), *arguments]

    def environ(self, **extra: str) -> dict[str, str]:
        """Return Bazel's test environment, without this test's variables."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("TEST", "XML_"))}
        return clean | {
            "TEST_TMPDIR": str(self.folder / "tmp"),
            "XML_OUTPUT_FILE": str(self.folder / "test.xml"),
            **extra,
        }

    def run(
        self, text: str, *arguments: str, **extra: str
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Run `text` as its only module; return process and cases of XML."""
        (self.folder / "some_test.py").write_text(text)
        done = subprocess.run(
            self.command("some_test.py", *arguments),
            cwd=self.folder,
            env=self.environ(**extra),
            capture_output=True,
            text=True,
            check=False,
        )
        report = self.folder / "test.xml"
        cases = ElementTree.parse(report).iter("testcase") if report.exists() else []
        return done, [case.get("name", "") for case in cases]


@pytest.fixture
def target(tmp_path: pathlib.Path) -> Target:
    return Target(tmp_path)


ALL = ["test_one", "test_two[0]", "test_two[1]", "test_two[2]", "test_async", "test_property"]


def test_passes_and_reports(target: Target) -> None:
    done, cases = target.run(TESTS)
    assert done.returncode == 0, done.stdout
    assert cases == ALL
    assert "6 passed" in done.stdout


@pytest.mark.parametrize(
    "text",
    [
        "def test_x():\n    assert False\n",
        "import no_such_module\n",
        "",
        "def helper():\n    pass\n",
        "async def test_x():\n    assert False\n",
        "import threading\n\ndef test_x():\n"
        "    t = threading.Thread(target=lambda: 1 / 0)\n    t.start()\n    t.join()\n",
        "import pytest\n\n@pytest.mark.no_such_mark\ndef test_x():\n    pass\n",
        "import pytest\n\n@pytest.mark.xfail\ndef test_x():\n    pass\n",
    ],
    ids=["assert", "import", "empty", "no-test", "async", "thread", "mark", "xpass"],
)
def test_fails(target: Target, text: str) -> None:
    done, _ = target.run(text)
    assert done.returncode != 0, done.stdout


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("test_two", ALL[1:4]),
        ("one or async", ["test_one", "test_async"]),
        ("some_test.py::test_two[1]", ["test_two[1]"]),
        ("some_test.py::test_two", ALL[1:4]),
    ],
)
def test_filter(target: Target, wanted: str, found: list[str]) -> None:
    for many in ("", "1"):
        done, cases = target.run(TESTS, TESTBRIDGE_TEST_ONLY=wanted, TEST_FILTER_OF_MANY=many)
        assert done.returncode == 0, done.stdout
        assert cases == found


@pytest.mark.parametrize(
    "wanted",
    ["nothing_like_it", "other_test.py::test_two", "some_test.py::nosuch", "some_test.py::test_tw"],
)
def test_a_filter_without_a_match_fails_and_lists_the_cases(target: Target, wanted: str) -> None:
    done, cases = target.run(TESTS, TESTBRIDGE_TEST_ONLY=wanted)
    assert done.returncode != 0
    assert f"--test_filter={wanted} matches no case" in done.stdout
    assert all(f"    some_test.py::{case}\n" in done.stdout for case in ALL)
    assert cases == []
    # Other targets have the same filter, and may have a match.
    done, cases = target.run(TESTS, TESTBRIDGE_TEST_ONLY=wanted, TEST_FILTER_OF_MANY="1")
    assert done.returncode == 0, done.stdout
    assert cases == []


def test_a_long_list_of_cases_is_cut(target: Target) -> None:
    text = "import pytest\n\n@pytest.mark.parametrize('n', range(99))\ndef test_x(n):\n    pass\n"
    done, _ = target.run(text, TESTBRIDGE_TEST_ONLY="nosuch")
    assert "test_x[39]" in done.stdout
    assert "test_x[40]" not in done.stdout
    assert "... 99 in all" in done.stdout


def test_a_wrong_expression_fails(target: Target) -> None:
    done, _ = target.run(TESTS, TESTBRIDGE_TEST_ONLY="one or")
    assert done.returncode != 0


def test_shards_share_the_filtered_tests(target: Target) -> None:
    seen = []
    for index in range(4):
        done, cases = target.run(
            TESTS,
            TESTBRIDGE_TEST_ONLY="test_two",
            TEST_TOTAL_SHARDS="4",
            TEST_SHARD_INDEX=str(index),
            TEST_SHARD_STATUS_FILE=str(target.folder / "status"),
        )
        assert done.returncode == 0, done.stdout
        seen += cases
    assert sorted(seen) == ALL[1:4]


def test_shards_share_the_tests(target: Target) -> None:
    seen = []
    for index in range(4):
        status = target.folder / f"status{index}"
        done, cases = target.run(
            TESTS,
            TEST_TOTAL_SHARDS="4",
            TEST_SHARD_INDEX=str(index),
            TEST_SHARD_STATUS_FILE=str(status),
        )
        assert done.returncode == 0, done.stdout
        assert status.exists()
        assert cases
        seen += cases
    assert sorted(seen) == sorted(ALL)


def test_an_empty_shard_passes(target: Target) -> None:
    done, cases = target.run(
        "def test_x():\n    pass\n",
        TEST_TOTAL_SHARDS="2",
        TEST_SHARD_INDEX="1",
        TEST_SHARD_STATUS_FILE=str(target.folder / "status"),
    )
    assert (done.returncode, cases) == (0, []), done.stdout


def test_property_tests_are_the_same_every_time(target: Target) -> None:
    text = """\
from hypothesis import given, strategies

seen = []

@given(strategies.integers())
def test_x(n):
    seen.append(n)

def test_print():
    print("seen", seen)
"""
    runs = [target.run(text, "-s")[0].stdout for _ in range(2)]
    examples = [next(x for x in run.splitlines() if "seen [" in x) for run in runs]
    assert examples[0] == examples[1]
    assert examples[0].count(",") > 50
    seeded = [target.run(text, "-s", TEST_RANDOM_SEED=seed)[0].stdout for seed in "232"]
    others = [next(x for x in run.splitlines() if "seen [" in x) for run in seeded]
    assert others[0] == others[2]
    assert len({examples[0], *others}) == 3
    assert not (target.folder / ".hypothesis").exists()


def test_names_of_sockets_fit(target: Target) -> None:
    text = """\
import socket

def test_a_name_as_long_as_names_get_here(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "workload.sock"))
"""
    done, _ = target.run(text)
    assert done.returncode == 0, done.stdout


def test_timeout_says_where_it_hung(target: Target) -> None:
    """Bazel sends SIGTERM when the time is over."""
    text = "import signal\n\ndef test_x():\n    print('at it', flush=True)\n    signal.pause()\n"
    (target.folder / "some_test.py").write_text(text)
    process = subprocess.Popen(
        target.command("some_test.py", "-s"),
        cwd=target.folder,
        env=target.environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "at it" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGTERM
    assert "some_test.py" in errors
    assert "test_x" in errors
