# SPDX-License-Identifier: Apache-2.0
"""bazelw, for real, with a Bazel that notes how it was called.

Outside of the devroot as inside: this test's own root is the devroot, and the
file that marks it is hidden where bazelw runs.
"""

import dataclasses
import json
import os
import pathlib
import pwd
import subprocess
from collections.abc import Mapping, Sequence

import pytest

from build.lint import tree

ROOT = tree.workspace()
FILES = (".bazelrc", "bazelw", "tools/bazel")
FOLDERS = ("build/devroot", "build/results")

# Notes its arguments, environment and directory; writes the file of events.
BAZEL = """\
#!/usr/bin/python3
import json, os, sys
folder = os.environ["TMPDIR"]
with open(f"{folder}/calls", "a") as calls:
    print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), os.getpid()]), file=calls)
for argument in sys.argv:
    if argument.startswith("--build_event_json_file="):
        with open(f"{folder}/events") as events, open(argument.partition("=")[2], "w") as out:
            out.write(events.read())
sys.exit(int(os.environ.get("CHURN_PODS", "0")))
"""

# In its own mount namespace: makes the devroot, hides the mark, runs bazelw.
OUTSIDE = """\
set -e
mount --rbind / "$DEVROOT"
mount --bind "$FAKE" "$DEVROOT/usr/bin/bazel"
rm -rf "$TMPDIR/etc" && cp -r /etc "$TMPDIR/etc" 2>/dev/null || true
rm "$TMPDIR/etc/metropolis-devroot"
mount --bind "$TMPDIR/etc" /etc
eval "$BEFORE"
exec "$@"
"""


@dataclasses.dataclass(frozen=True)
class Call:
    """How Bazel was called."""

    arguments: list[str]
    environ: dict[str, str]
    directory: str
    pid: int

    def command(self) -> list[str]:
        """Return the arguments from the command on."""
        return [a for i, a in enumerate(self.arguments) if not self._startup(i)]

    def _startup(self, index: int) -> bool:
        return all(argument.startswith("-") for argument in self.arguments[: index + 1])


class Clone:
    """A clone of the files that bazelw needs, in a folder of any name."""

    def __init__(self, folder: pathlib.Path, name: str) -> None:
        self.folder = folder
        self.workspace = folder / name
        for path in [*FILES, *(p for f in FOLDERS for p in self._files(f))]:
            copy = self.workspace / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / path).read_bytes())
            copy.chmod((ROOT / path).stat().st_mode)
        self.fake = folder / "fake-bazel"
        self.fake.write_text(BAZEL)
        self.fake.chmod(0o755)
        self.cache = folder / "cache"
        tools = folder / "tools"
        tools.mkdir()
        # The devroot has util-linux without it.
        (tools / "pivot_root").symlink_to("/usr/bin/busybox")
        self.environ = {
            "PATH": f"/usr/bin:/bin:{tools}",
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "XDG_CACHE_HOME": str(self.cache),
            "FAKE": str(self.fake),
        }

    @staticmethod
    def _files(folder: str) -> list[str]:
        return [str(p.relative_to(ROOT)) for p in (ROOT / folder).iterdir() if p.is_file()]

    def inside(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the workspace in the devroot."""
        return self._run(command, {"BAZEL_REAL": str(self.fake)} | environ)

    def outside(
        self, *command: str, before: str = "", devroot: bool = True, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of the workspace on the host.

        before: a script, with $CACHE; devroot: whether the devroot is there.
        """
        key = self._bash('source <(sed -n "/^readonly recipe/,/^}/p" bazelw); devroot_key')
        cache = pathlib.Path(environ.get("XDG_CACHE_HOME", self.cache), "metropolis")
        root = cache / "devroot" / key if devroot else self.folder / "elsewhere"
        root.mkdir(parents=True)
        script = ["unshare", "--mount", "bash", "-c", OUTSIDE, "bash"]
        given = {"DEVROOT": str(root), "CACHE": str(cache), "BEFORE": before, **environ}
        return self._run([*script, *command], given)

    def _bash(self, script: str) -> str:
        environ = {"PATH": "/usr/bin:/bin", "defs": "build/devroot"}
        return subprocess.check_output(
            ["bash", "-c", script], cwd=self.workspace, env=environ, text=True
        ).strip()

    def _run(
        self, command: Sequence[str], environ: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.workspace,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
            timeout=60,
        )

    def calls(self) -> list[Call]:
        calls = self.folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [Call(*json.loads(line)) for line in lines]


@pytest.fixture
def clone(tmp_path: pathlib.Path) -> Clone:
    return Clone(tmp_path, "clone")


def test_bazel_gets_the_arguments_in_the_devroot(clone: Clone) -> None:
    done = clone.outside("./bazelw", "build", "//x y", "--", "-//z", METROCTL_CA="a b")
    assert done.returncode == 0, done.stderr
    [call] = clone.calls()
    assert call.command() == ["build", "//x y", "--", "-//z"]
    assert call.directory == str(clone.workspace)
    assert call.environ["METROCTL_CA"] == "a b"


def test_bazel_gets_the_signals_that_are_sent_to_bazelw(clone: Clone) -> None:
    """It takes its place, so that what ends bazelw ends what it runs, too."""
    done = clone.outside("bash", "-c", "echo $$; exec ./bazelw run //x")
    [call] = clone.calls()
    assert call.pid == int(done.stdout), done.stderr


def test_so_does_a_command_of_the_shell(clone: Clone) -> None:
    done = clone.outside("bash", "-c", "echo $$; exec ./bazelw shell sh -c 'echo $$'")
    before, after = done.stdout.split()
    assert before == after, done.stderr


def test_the_status_is_bazels(clone: Clone) -> None:
    assert clone.outside("./bazelw", "build", "//x", CHURN_PODS="7").returncode == 7
    assert clone.inside("./bazelw", "build", "//x", CHURN_PODS="7").returncode == 7


@pytest.mark.parametrize(
    ("given", "command"),
    [
        ("pod exec a ls -l", "run --config=quiet //metropolis/test/launch:pod -- exec a ls -l"),
        ("console", "run --config=quiet //metropolis/test/launch:console --"),
        ("metroctl node list", "run --config=quiet //metropolis/test/launch:metroctl -- node list"),
        ("nodes add", "run --config=quiet //metropolis/test/launch:nodes -- add"),
    ],
)
def test_short_names(clone: Clone, given: str, command: str) -> None:
    assert clone.inside("./bazelw", *given.split()).returncode == 0
    assert [call.command() for call in clone.calls()] == [command.split()]


# --- tools/bazel ------------------------------------------------------------


def test_bazelisk_is_the_same_on_the_host(clone: Clone) -> None:
    for program in ("./bazelw", "tools/bazel"):
        done = clone.outside(program, "run", "//x", XDG_CACHE_HOME=str(clone.folder / program))
        assert done.returncode == 0, done.stderr
    one, other = clone.calls()
    assert one.command() == other.command() == ["run", "//x"]
    assert one.environ["DEVROOT_KEY"] == other.environ["DEVROOT_KEY"]


def test_a_bazel_that_calls_tools_bazel_is_not_called_for_ever(clone: Clone) -> None:
    """Inside, `bazel` may be one that looks for tools/bazel, too."""
    wrapper = clone.folder / "tools" / "bazel"
    wrapper.write_text(
        "#!/bin/bash\n"
        'echo wrapper >>"$TMPDIR/wrapped"\n'
        '[[ $(wc -l <"$TMPDIR/wrapped") -lt 5 ]] || exit 99\n'
        'BAZEL_REAL=$FAKE exec tools/bazel "$@"\n'
    )
    wrapper.chmod(0o755)
    path = f"{wrapper.parent}:/usr/bin:/bin"
    for command in (["bazel", "build", "//x"], ["./bazelw", "build", "//x"]):
        done = clone._run(command, {"PATH": path})
        assert done.returncode == 0, done.stderr
    assert [call.command() for call in clone.calls()] == [["build", "//x"]] * 2
    assert all(call.environ["BAZELISK_SKIP_WRAPPER"] == "true" for call in clone.calls())


# --- A filter for several tests ---------------------------------------------


def event(folder: pathlib.Path, cases: str) -> str:
    (folder / "test.xml").write_text(f"<testsuite>{cases}</testsuite>")
    outputs = [{"name": "test.log", "uri": f"file://{folder}/test.log"}]
    return json.dumps(
        {
            "id": {"testResult": {"label": "//x:y"}},
            "testResult": {"status": "PASSED", "testActionOutput": outputs},
        }
    )


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_a_filter_of_many_that_matches_nothing_is_an_error(clone: Clone, where: str) -> None:
    run = clone.inside if where == "inside" else clone.outside
    command = ["./bazelw", "test", "//x/...", "--test_filter=nosuch"]
    (clone.folder / "events").write_text(event(clone.folder, ""))
    done = run(*command)
    assert done.returncode == 4, done.stderr
    assert "--test_filter matches no case" in done.stderr
    [call] = clone.calls()
    assert call.environ["TEST_FILTER_OF_MANY"] == "1"
    assert call.command()[-2:] == command[-2:]


@pytest.mark.parametrize(("cases", "bazel"), [("<testcase name='a'/>", "0"), ("", "3")])
def test_otherwise_the_status_is_bazels(clone: Clone, cases: str, bazel: str) -> None:
    (clone.folder / "events").write_text(event(clone.folder, cases))
    done = clone.inside(
        "./bazelw", "test", "//x:a", "//x:b", "--test_filter", "one", CHURN_PODS=bazel
    )
    assert done.returncode == int(bazel), done.stderr
    assert not list(pathlib.Path("/tmp").glob("bazelw-events*"))


@pytest.mark.parametrize(
    "command",
    [
        "test //x:a --test_filter=b",
        "test //x:a --test_filter a_test.py::b",
        "test //x/...",
        "test --build_event_json_file=/dev/null //x/... --test_filter=b",
        "build //x/... --test_filter=b",
    ],
)
def test_one_test_finds_out_itself(clone: Clone, command: str) -> None:
    (clone.folder / "events").write_text("")
    assert clone.inside("./bazelw", *command.split()).returncode == 0
    [call] = clone.calls()
    assert call.command() == command.split()
    assert "TEST_FILTER_OF_MANY" not in call.environ


# --- Questions before anything is made --------------------------------------


@pytest.mark.parametrize("name", ["my proj", "prüfung #1 (50%)"])
def test_a_clone_may_have_any_path(tmp_path: pathlib.Path, name: str) -> None:
    clone = Clone(tmp_path, name)
    done = clone.outside("./bazelw", "build", "//x")
    assert done.returncode == 0, done.stderr
    [call] = clone.calls()
    assert call.directory == str(clone.workspace)
    assert "--noworkspace_rc" in call.arguments
    [rc] = [a.partition("=")[2] for a in call.arguments if a.startswith("--bazelrc=")]
    [line] = [r for r in pathlib.Path(rc).read_text().splitlines() if "--registry=" in r]
    assert line == f"common --registry={(clone.workspace / 'build/registry').as_uri()}"


@pytest.mark.parametrize("name", ["a cache", "a:b", "it's"])
def test_a_cache_may_not(clone: Clone, name: str) -> None:
    done = clone.outside(
        "./bazelw", "build", "//x", XDG_CACHE_HOME=str(clone.folder / name), devroot=False
    )
    assert done.returncode == 1
    assert "set XDG_CACHE_HOME to a directory with a plain path" in done.stderr
    assert not clone.calls()


@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize("home", [None, ""])
def test_without_a_home(clone: Clone, where: str, home: str | None) -> None:
    """It is that of the users' database, as for ~."""
    clone.environ["HOME"] = home or ""
    command = ("env", *(("-u", "HOME") if home is None else ()), "./bazelw", "build", "//x")
    done = getattr(clone, where)(*command)
    assert done.returncode == 0, done.stderr
    [call] = clone.calls()
    assert call.environ["HOME"] == pwd.getpwuid(os.getuid()).pw_dir


@pytest.mark.parametrize("name", ["HOME", "XDG_CACHE_HOME"])
def test_paths_are_absolute(clone: Clone, name: str) -> None:
    done = clone.inside("./bazelw", "build", "//x", **{name: "a/b"})
    assert done.returncode == 1
    assert f"bazelw: {name} is 'a/b': set it to an absolute path" in done.stderr
    assert not clone.calls()


def test_an_empty_word_is_no_command(clone: Clone) -> None:
    done = clone.inside("./bazelw", "", "build", "//x")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the first word is empty" in done.stderr
    assert not clone.calls()


SMALL = 'mkdir -p "$CACHE"; mount -t tmpfs -o size={}m tmpfs "$CACHE";'
KEPT = """
mkdir "$TMPDIR/kept"; mount --rbind "$DEVROOT" "$TMPDIR/kept"
{small} mkdir -p "$DEVROOT"; mount --rbind "$TMPDIR/kept" "$DEVROOT"
{more}
"""
OUTPUTS = 'mkdir -p "$CACHE/bazel/$(printf %s "$PWD" | md5sum | cut -c1-32)"'


@pytest.mark.parametrize(
    ("devroot", "outputs", "mb", "needed"),
    [
        (False, False, 6000, 7000),
        (True, False, 2000, 2500),
        (True, False, 3000, None),
        (True, True, 300, 500),
        (True, True, 600, None),
    ],
)
def test_a_full_disk(
    clone: Clone, devroot: bool, outputs: bool, mb: int, needed: int | None
) -> None:
    before = SMALL.format(mb)
    if devroot:
        before = KEPT.format(small=before, more=OUTPUTS if outputs else "")
    done = clone.outside("./bazelw", "build", "//x", before=before, devroot=devroot)
    if needed is None:
        assert done.returncode == 0, done.stderr
        assert len(clone.calls()) == 1
        return
    assert done.returncode == 1
    assert f"only {mb} MB are free in {clone.cache}/metropolis, and {needed} MB" in done.stderr
    assert "make room, or set XDG_CACHE_HOME" in done.stderr
    assert not clone.calls()


ABSENT = "mount -t tmpfs tmpfs /dev/net"
# It cannot be opened without a terminal.
CLOSED = "mount --bind /dev/tty /dev/net/tun"


@pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="no /dev/net/tun to hide")
@pytest.mark.parametrize(
    ("before", "words", "cure"),
    [
        (ABSENT, "there is no /dev/net/tun", "sudo modprobe tun"),
        (CLOSED, "/dev/net/tun: No such device or address", "sudo chmod 666 /dev/net/tun"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        "run //metropolis:launch",
        "run //metropolis:launch-cluster -- --nodes 3",
        "test //...",
        "test //metropolis/test/e2e:node_test",
    ],
)
def test_commands_that_boot_nodes_ask_for_the_device(
    clone: Clone, command: str, before: str, words: str, cure: str
) -> None:
    done = clone.outside("./bazelw", *command.split(), before=before)
    assert done.returncode == 1
    assert words in done.stderr
    assert cure in done.stderr
    assert "--config=quick" in done.stderr
    assert not clone.calls()


@pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="no /dev/net/tun to hide")
@pytest.mark.parametrize(
    "command",
    [
        "build //...",
        "run //metropolis/cli/metroctl -- //metropolis:launch",
        "test --config=quick //...",
        "test //osbase/...",
        "query //...",
        "shutdown",
    ],
)
def test_others_do_not(clone: Clone, command: str) -> None:
    done = clone.outside("./bazelw", *command.split(), before=ABSENT)
    assert done.returncode == 0, done.stderr
    assert len(clone.calls()) == 1


def test_the_questions_can_be_left_out(clone: Clone) -> None:
    done = clone.outside("./bazelw", "test", "//...", before=ABSENT, BAZELW_UNCHECKED="1")
    assert done.returncode == 0, done.stderr
