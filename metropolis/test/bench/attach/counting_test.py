# SPDX-License-Identifier: Apache-2.0
"""Parsing strace's output."""

from metropolis.test.bench.attach.counting import Counts, count

TRACE = """\
12 execve("/usr/lib/cni/ptp", ["ptp"], 0x7f /* 9 vars */) = 0
12 read(0, "{}", 512) = 2
12 clone(child_stack=0xc0, flags=CLONE_VM|CLONE_FS|CLONE_THREAD|CLONE_SYSVSEM) = 13
13 futex(0x1, FUTEX_WAIT_PRIVATE, 0, NULL <unfinished ...>
12 clone(child_stack=NULL, flags=CLONE_VM|CLONE_VFORK|SIGCHLD <unfinished ...>
14 execve("/nowhere/iptables", ["iptables"], 0x7f /* 9 vars */) = -1 ENOENT (No such file)
14 execve("/bin/iptables", ["iptables"], 0x7f /* 9 vars */ <unfinished ...>
12 <... clone resumed>) = 14
14 <... execve resumed>) = 0
12 --- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=14} ---
12 wait4(14, [{WIFEXITED(s) && WEXITSTATUS(s) == 0}], 0, NULL) = 14
14 +++ exited with 0 +++
""".splitlines()


def test_calls_processes_and_programs() -> None:
    # Two threads and a process; one program does not exist.
    assert count(TRACE) == Counts(syscalls=8, processes=1, execs=2)


def test_idle_calls_are_taken_off() -> None:
    assert Counts(10, 2, 1).less(Counts(3, 0, 2)) == Counts(7, 2, 0)


def test_no_calls() -> None:
    assert count([]) == Counts(0, 0, 0)
