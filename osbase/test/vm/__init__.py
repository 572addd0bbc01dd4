# SPDX-License-Identifier: Apache-2.0
"""vm_pytest: a pytest target that runs as root inside a booted kernel.

For what the host's kernel does not have (netkit, WireGuard) and for what must
not touch the host. The machine is a Debian cloud kernel with a small root of
busybox, Python, iproute2 and nftables, and a disk with the test's runfiles;
the test starts a few seconds after the machine, or about ten if it is emulated.

    host: runner.py --- osbase/test/agent --- guest: build/python/pytest_main.py
    exit status, output, JUnit XML and undeclared outputs come back

Why not a VM that is kept for all tests: a test that wedges its kernel would
take the others with it, and Bazel runs each target by itself anyway.
"""
