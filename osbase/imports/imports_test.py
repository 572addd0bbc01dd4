# SPDX-License-Identifier: Apache-2.0
"""Each test is a process: its modules are not imported yet."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

_PACKAGE = {
    "__init__.py": "",
    "deferred.py": "import sys\nsys.stdout.write('loaded ')\nvalue = 1\n__all__ = ['value']\n",
    "uses.py": "from made import deferred\nimport made.deferred\n",
    "takes.py": "from made.deferred import value\n",
    "broken.py": "nothing_has_this_name\n",
    "slow.py": "import time\nfirst = 1\ntime.sleep(0.2)\nlast = 2\n",
    "own.py": "def __getattr__(name):\n    return name\n",
    "circle.py": "import made.back\nvalue = 3\n",
    "back.py": "import made.circle\nseen = hasattr(made.circle, 'value')\n",
}


def run(tmp_path: Path, script: str) -> str:
    """Run the script beside a package; return its output."""
    package = tmp_path / "made"
    package.mkdir()
    for name, text in _PACKAGE.items():
        (package / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=True, capture_output=True, text=True,
        env={"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )  # fmt: skip
    return done.stdout


def test_a_deferred_module_loads_at_its_first_use(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        from osbase.imports import defer
        defer(["made.deferred"])
        import made.uses
        print("imported", made.uses.deferred is made.deferred)
        print(made.deferred.value, made.deferred.__spec__.loader is made.deferred.__loader__)
        print(hasattr(made.deferred, "other"), "__getattr__" in vars(made.deferred))
        """,
    )
    assert said == "imported True\nloaded 1 True\nFalse False\n"


def test_from_import_loads_it_at_once(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        from osbase.imports import defer
        defer(["made.deferred"])
        import made.takes
        print(made.takes.value)
        from made.deferred import *
        print(value)
        """,
    )
    assert said == "loaded 1\n1\n"


def test_a_fault_in_it_is_reported_at_each_use(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        from osbase.imports import defer
        defer(["made.broken", "made.absent"])
        import made.broken
        for _ in range(2):
            try:
                made.broken.value
            except NameError as error:
                print(error)
        try:
            import made.absent
        except ModuleNotFoundError as error:
            print(error)
        """,
    )
    assert said.splitlines() == [
        *2 * ["name 'nothing_has_this_name' is not defined"],
        "No module named 'made.absent'",
    ]


def test_threads_see_the_whole_module(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        import threading
        from osbase.imports import defer
        defer(["made.slow"])
        import made.slow
        seen = []
        threads = [threading.Thread(target=lambda: seen.append(made.slow.last)) for _ in range(8)]
        for one in threads: one.start()
        for one in threads: one.join()
        print(seen)
        """,
    )
    assert said == f"{[2] * 8}\n"


def test_a_modules_own_getattr_and_a_circle_of_imports(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        from osbase.imports import defer
        defer(["made.own", "made.circle"])
        import made.own, made.circle
        print(made.own.anything, made.own.more, made.circle.value, made.back.seen)
        """,
    )
    assert said == "anything more 3 False\n"


def test_without_openssl_asyncio_runs_and_digests_are_the_same(tmp_path: Path) -> None:
    script = """
        import asyncio, hashlib, hmac
        async def pair():
            server = await asyncio.start_unix_server(lambda reader, writer: writer.close(), "s")
            reader, writer = await asyncio.open_unix_connection("s")
            data = await reader.read()
            writer.close()
            server.close()
            return data
        print(asyncio.run(pair()))
        for name in sorted(hashlib.algorithms_guaranteed):
            if not name.startswith("shake"):
                print(name, hashlib.new(name, b"x").hexdigest())
        print(hmac.digest(b"k", b"m", "sha256").hex())
        """
    (tmp_path / "plain").mkdir()
    (tmp_path / "less").mkdir()
    enter = f"import os; os.chdir({str(tmp_path)!r})\n"
    less = enter + "from osbase.imports import without; without(['ssl', '_hashlib'])\n"
    both = [
        run(tmp_path / name, before + textwrap.dedent(script))
        for name, before in (("plain", enter), ("less", less))
    ]
    assert both[0] == both[1] != ""


def test_who_needs_a_refused_module_may_have_it(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        from osbase.imports import allow, without
        without(["ssl", "json"])
        import asyncio
        try:
            import ssl
        except ImportError:
            print("refused", end=" ")
        for name in ("ssl", "ssl", "json", "never.heard.of"):
            allow(name)
        import ssl
        print(ssl.create_default_context().check_hostname)
        """,
    )
    assert said == "refused True\n"
