# SPDX-License-Identifier: Apache-2.0
"""Fuzz all targets, or some, for a time: `run :fuzz -- --seconds N`.

    --target NAME   only this one; may be repeated
    --runs N        this many inputs each, in place of a time (fewer of slow
                    targets); with
    --seed N        the same ones every time
    --keep          add inputs that reach new code to the corpus in the tree
    --json          last line: {"ok", "inputs", "targets": {name: inputs}}

Each target runs in a separate process, for its share of the time. It ends at
the first fault: the input is printed in hex, with the traceback, and the exit
status is 1. `--replay NAME HEX` gives a target that input again.
"""

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from metropolis.test.fuzz import corpus

_NAMES = (
    "netlink_messages",
    "tracked_flows",
    "netlink_conversation",
    "cni_frame",
    "cni_execution",
    "node_configuration",
    "dhcp_packet",
    "dhcp_exchange",
    "workload_request",
    "cluster_store",
    "policy_elements",
    "policy_yaml",
    "policy_request",
    "policy_files",
)
# What a run takes, of targets that compile policies and write files.
_SLOW = {"policy_request": 16, "policy_files": 16}
_MAX_LENGTH = 4096  # bytes of an input
_INPUT_S = 20  # limit for one input


def _child(target: str, arguments: list[str]) -> None:
    """Become libFuzzer; does not return."""
    import atheris

    with atheris.instrument_imports(include=["osbase", "metropolis"]):
        from metropolis.test.fuzz.targets import TARGETS
    logging.disable()  # of what is refused, thousands of times
    atheris.Setup([sys.argv[0], *arguments], TARGETS[target])
    atheris.Fuzz()


def _run(target: str, arguments: list[str]) -> tuple[int, str]:
    command = [sys.executable, "-m", "metropolis.test.fuzz.fuzz", "--child", target, "--"]
    done = subprocess.run(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        check=False,
    )
    return done.returncode, done.stdout.decode(errors="backslashreplace")


def _fuzz(target: str, limits: list[str], keep: Path | None) -> int | None:
    """Return the number of inputs; None: a fault was found and printed."""
    with tempfile.TemporaryDirectory() as scratch:
        known, found = Path(scratch, "known"), Path(scratch, "found")
        corpus.spread(corpus.load(target), known)
        found.mkdir()
        status, text = _run(
            target,
            [
                *limits,
                f"-max_len={_MAX_LENGTH}",
                f"-timeout={_INPUT_S}",
                f"-artifact_prefix={scratch}/fault-",
                str(found),
                str(known),
            ],
        )
        done = re.search(r"Done (\d+) runs in", text)
        if status or done is None:
            print(f"{target}: a fault, status {status}\n{text[-6000:]}", file=sys.stderr)
            for path in Path(scratch).glob("fault-*"):
                again = f"--replay {target} {path.read_bytes().hex()}"
                print(f"{path.name}: again by: {again}", file=sys.stderr)
            return None
        if keep is not None:
            from metropolis.test.fuzz.targets import TARGETS

            every = [*corpus.gather(known), *corpus.gather(found)]
            corpus.save(target, corpus.minimise(TARGETS[target], every), keep)
        return int(done[1])


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="fuzz",
        usage="%(prog)s [options]",
        description="Fuzz the parsers of outside bytes.",
        epilog=f"targets: {', '.join(_NAMES)}. Exit status: 0 nothing was found, 1 something was, "
        "2 wrong arguments.",
    )
    parser.add_argument(
        "--seconds", metavar="S", type=int, default=60,
        help="for all targets together; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--runs", metavar="N", type=int, help="inputs for each target, in place of --seconds"
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0,
        help="of libFuzzer; default: 0, another every time",
    )  # fmt: skip
    parser.add_argument(
        "--target", metavar="TARGET", action="append", choices=_NAMES,
        help="only this one; repeatable; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--keep", action="store_true", help="add inputs that reach new code to the corpus"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON, no table")
    parser.add_argument(
        "--replay", nargs=2, metavar=("TARGET", "HEX"),
        help="only give one input, in hexadecimal, to a target; default: fuzz",
    )  # fmt: skip
    parser.add_argument("--child", choices=_NAMES, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.child:
        _child(chosen.child, chosen.rest)
    if chosen.replay:
        from metropolis.test.fuzz.targets import TARGETS

        TARGETS[chosen.replay[0]](bytes.fromhex(chosen.replay[1]))
        return 0
    keep = None
    if chosen.keep:
        workspace = os.environ.get("BUILD_WORKSPACE_DIRECTORY")
        if workspace is None:
            parser.error("--keep: run me as: ./bazelw run //metropolis/test/fuzz -- --keep")
        keep = Path(workspace, "metropolis/test/fuzz/corpus")
    targets = chosen.target or list(_NAMES)
    share = max(1, chosen.seconds // len(targets))
    counts: dict[str, int | None] = {}
    for target in targets:
        began = time.monotonic()
        runs = chosen.runs and max(1, chosen.runs // _SLOW.get(target, 1))
        limit = f"-runs={runs}" if runs else f"-max_total_time={share}"
        counts[target] = _fuzz(target, [limit, f"-seed={chosen.seed}"], keep)
        taken = time.monotonic() - began
        told = f"{target}: {counts[target] or 0:,} inputs in {taken:.0f} s"
        print(told, file=sys.stderr, flush=True)
    inputs = {target: count or 0 for target, count in counts.items()}
    ok = None not in counts.values()
    total = sum(inputs.values())
    print(f"{total:,} inputs, {'no fault' if ok else 'FAULTS'}", file=sys.stderr)
    if chosen.json:
        print(json.dumps({"ok": ok, "inputs": total, "targets": inputs}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
