# SPDX-License-Identifier: Apache-2.0
"""Find out whether KVM runs a guest here, by running one.

/dev/kvm that opens proves nothing: under some nested hypervisors the firmware
starts and the kernel then hangs for ever, or QEMU stops with "KVM internal
error", and QEMU's own fallback (-accel kvm:tcg) sees neither. So `find_accel`
boots a kernel with a one-program initramfs that powers the machine off. A
guest that gets that far has run firmware, kernel and user mode.

The answer is stored in the user's cache directory. The key is what it depends
on (machine, host kernel, QEMU, /dev/kvm). If the directory is not writable (a
Bazel sandbox) the probe runs again: milliseconds with KVM, at most
PROBE_TIMEOUT_S where it hangs. METROPOLIS_ACCEL=kvm, =tcg or =icount in the
environment overrides all.
"""

import asyncio
import contextlib
import hashlib
import os
import pwd
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from osbase.test.qemu.config import Accel, Machine
from osbase.test.qemu.vm import QEMU, Vm, VmError

# Seconds a guest gets from start to power-off; it needs about one.
PROBE_TIMEOUT_S = 10.0

OVERRIDE = "METROPOLIS_ACCEL"
_KVM = Path("/dev/kvm")


def cpio_newc(files: dict[str, bytes]) -> bytes:
    """Return a cpio archive (newc, as initramfs) of executable files."""
    out = bytearray()

    def entry(name: str, mode: int, data: bytes) -> None:
        raw = name.encode() + b"\0"
        fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        out.extend(b"070701" + b"".join(b"%08X" % value for value in fields) + raw)
        out.extend(bytes(-len(out) % 4))
        out.extend(data)
        out.extend(bytes(-len(out) % 4))

    for name, data in files.items():
        entry(name, 0o100755, data)
    entry("TRAILER!!!", 0, b"")
    return bytes(out)


def poweroff_program() -> bytes:
    """Return a static x86-64 ELF program that only calls reboot(2) with
    RB_POWER_OFF.

    Its bytes are here because a probe cannot depend on a compiler, and an image
    with a shell would need a build.
    """
    code = (
        b"\xb8\xa9\x00\x00\x00"  # mov eax, 169 (reboot)
        b"\xbf\xad\xde\xe1\xfe"  # mov edi, 0xfee1dead
        b"\xbe\x69\x19\x12\x28"  # mov esi, 0x28121969
        b"\xba\xdc\xfe\x21\x43"  # mov edx, 0x4321fedc (power off)
        b"\x0f\x05"  # syscall
        b"\xeb\xfe"  # jmp . (refused: the probe times out)
    )
    base, header = 0x400000, 64 + 56
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    ehdr = ident + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, base + header, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    size = header + len(code)
    phdr = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return ehdr + phdr + code


async def probe(kernel: Path, accel: Accel, timeout_s: float = PROBE_TIMEOUT_S) -> str:
    """Boot `kernel` under `accel`; return "" on success, else the reason."""
    with tempfile.TemporaryDirectory(prefix="m-probe-", dir="/tmp") as name:
        directory = Path(name)
        initrd = directory / "initrd"
        initrd.write_bytes(cpio_newc({"init": poweroff_program()}))
        machine = Machine(kernel, initrd, cmdline="quiet", memory_mib=256, cpus=1)
        vm = Vm(machine, accel, directory)
        try:
            async with asyncio.timeout(timeout_s):
                async with vm:
                    stopped = asyncio.create_task(vm.stopped_by_error())
                    ended = asyncio.create_task(vm.wait())
                    await asyncio.wait({stopped, ended}, return_when=asyncio.FIRST_COMPLETED)
                    if not ended.done():
                        return "the guest stopped with an internal error"
                    reason = ended.result()
        except TimeoutError:
            return f"the guest did not end within {timeout_s:g} s"
        except VmError as error:
            return str(error).splitlines()[0]
    return "" if reason == "guest-shutdown" else f"the guest ended by {reason or 'a crash'}"


def _cache_file() -> Path | None:
    """Return the file with this machine's answer; None without a directory."""
    root = os.environ.get("XDG_CACHE_HOME")
    if not root:
        # In a Bazel test HOME is the sandbox's, so use the account's.
        with contextlib.suppress(KeyError):
            root = os.path.join(pwd.getpwuid(os.getuid()).pw_dir, ".cache")
    if not root:
        return None
    key = hashlib.sha256()
    for source in ("/etc/machine-id", "/proc/sys/kernel/osrelease", "/proc/version"):
        with contextlib.suppress(OSError):
            key.update(Path(source).read_bytes())
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        key.update(next((line for line in lines if "model name" in line), "").encode())
    with contextlib.suppress(OSError):
        modules = Path("/sys/module")
        key.update(repr(sorted(p.name for p in modules.glob("kvm*"))).encode())
    binary = shutil.which(QEMU)
    if binary is not None:
        version = subprocess.run([binary, "--version"], capture_output=True, check=False)
        key.update(version.stdout)
    return Path(root) / "metropolis" / "accel" / key.hexdigest()[:16]


def _remembered(path: Path | None) -> Accel | None:
    if path is None:
        return None
    try:
        return Accel(path.read_text().strip())
    except OSError, ValueError:
        return None


def _remember(path: Path | None, accel: Accel) -> None:
    if path is None:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(accel.value + "\n")
        temporary.replace(path)


def _say(message: str) -> None:
    print(f"accel: {message}", file=sys.stderr, flush=True)


def overridden() -> Accel | None:
    """Return the accelerator of the environment; VmError for a wrong one."""
    override = os.environ.get(OVERRIDE, "")
    try:
        return Accel(override) if override else None
    except ValueError:
        raise VmError(f"{OVERRIDE}={override!r}: want kvm, tcg or icount") from None


async def find_accel(kernel: Path) -> Accel:
    """Return KVM if it runs `kernel` here, else TCG; print it on stderr."""
    override = overridden()
    if override is not None:
        _say(f"{override.value}, as {OVERRIDE} says")
        return override
    if not os.access(_KVM, os.R_OK | os.W_OK):
        _say(f"tcg: {_KVM} is not there or not accessible")
        return Accel.TCG
    path = await asyncio.to_thread(_cache_file)
    known = _remembered(path)
    if known is not None:
        _say(f"{known.value}, as probed before ({path})")
        return known
    problem = await probe(kernel, Accel.KVM)
    accel = Accel.TCG if problem else Accel.KVM
    _remember(path, accel)
    _say(f"tcg: KVM does not run a guest here: {problem}" if problem else "kvm: probed, works")
    return accel
