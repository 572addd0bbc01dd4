# SPDX-License-Identifier: Apache-2.0
"""vm_pytest: a pytest target that runs as root inside a booted kernel.

It is for features that the host's kernel lacks (netkit, WireGuard) and for
tests that must not touch the host. The machine is a Debian cloud kernel with a
small root of busybox, Python, iproute2 and nftables, and a disk with the test's
runfiles. The test starts a few seconds after the machine, or about ten if that
is emulated.

    host: runner.py --- osbase/test/agent --- guest: build/python/pytest_main.py
    exit status, output, JUnit XML and undeclared outputs come back

Why not one VM for all tests: a test that wedges its kernel would break the
others, and Bazel runs each target separately anyway.
"""
