# SPDX-License-Identifier: Apache-2.0
"""A virtual machine for tests: QEMU with a kernel, disks and a console.

`accel` finds out whether KVM really runs a guest here, `config` describes a
machine and turns that into QEMU's arguments (pure), `vm` runs it.

Not a VM manager: direct kernel boot only (no firmware, no boot loader), one
process that owns the machine, and the machine dies with that process.

Why not libvirt: a daemon, root and XML for what is one child process; tests
want a machine that cannot outlive them.
"""
