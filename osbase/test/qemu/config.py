# SPDX-License-Identifier: Apache-2.0
"""The description of a machine, and its QEMU arguments. Pure.

Devices are given to QEMU as JSON where it takes JSON, so that no file name
needs escaping; where it does not (-chardev), commas are doubled.
"""

import json
import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

# sun_path is 108 bytes with the final NUL (linux/un.h).
UNIX_PATH_MAX = 107

_CHANNEL_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
# The virtio-blk serial is 20 bytes on the wire (VIRTIO_BLK_ID_BYTES).
_SERIAL = re.compile(r"[A-Za-z0-9._-]{1,20}")
_FW_CFG_NAME = re.compile(r"opt/[A-Za-z0-9._/-]{1,51}")
_CLOCK = re.compile(r"utc|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")

# The kernel's tests of its ciphers take an emulated CPU two seconds, and its
# statistics of memory accesses, which nobody reads, 2 % of it all the time.
_LESS_WORK = "cryptomgr.notests damon_stat.enabled=N"


class Accel(Enum):
    """What executes the guest's instructions.

    ICOUNT is TCG whose guest clock counts instructions: while a CPU is busy,
    one takes a nanosecond, so the guest's timings do not depend on the host.
    For measurements; about half as fast, its CPUs run one at a time.
    """

    KVM = "kvm"
    TCG = "tcg"
    ICOUNT = "icount"

    @property
    def args(self) -> list[str]:
        """Return the QEMU arguments for it, with the best CPU it offers."""
        if self is Accel.KVM:
            return ["-accel", "kvm", "-cpu", "host"]
        if self is Accel.ICOUNT:
            return ["-accel", "tcg,thread=single", "-cpu", "max", "-icount", "shift=0"]
        # A kernel on a CPU with ERMS or FSRM clears pages by `rep stosb`, which
        # TCG executes byte by byte.
        return ["-accel", "tcg,thread=multi", "-cpu", "max,erms=off,fsrm=off"]


class ConfigError(ValueError):
    """An impossible machine; the message has the part and the reason."""


@dataclass(frozen=True)
class Drive:
    """A raw image file as virtio-blk disk.

    The guest finds it by `serial` (/sys/block/*/serial), never by order.
    A writable drive is for throw-away data: the host's cache is not flushed.
    """

    path: Path
    serial: str
    readonly: bool = True

    def __post_init__(self) -> None:
        if not _SERIAL.fullmatch(self.serial):
            raise ConfigError(f"drive serial {self.serial!r}: want 1 to 20 of [A-Za-z0-9._-]")


@dataclass(frozen=True)
class Tap:
    """A network card on a tap (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).

    The caller closes `fd`.
    """

    fd: int
    mac: str

    def __post_init__(self) -> None:
        if not _MAC.fullmatch(self.mac):
            raise ConfigError(f"mac {self.mac!r}: want a unicast aa:bb:cc:dd:ee:ff in lower case")


@dataclass(frozen=True)
class Machine:
    """The description of a machine.

    kernel, initrd: files; cmdline: appended to what the console needs.
    channels: names of virtio-serial ports; each is /dev/virtio-ports/NAME in
    a guest with udev or mdev rules, and a listening unix socket on the host.
    fw_cfg: name (opt/...) to contents, read by the guest from QEMU's fw_cfg.
    memory_mib in MiB. clock: what the hardware clock begins with, "utc" for the
    present, or a time of UTC as 2026-11-24T10:00:00.
    """

    kernel: Path
    initrd: Path | None = None
    cmdline: str = ""
    drives: tuple[Drive, ...] = ()
    channels: tuple[str, ...] = ()
    fw_cfg: dict[str, bytes] = field(default_factory=dict)
    nets: tuple[Tap, ...] = ()
    memory_mib: int = 1024
    cpus: int = 2
    clock: str = "utc"

    def __post_init__(self) -> None:
        for name in self.channels:
            if not _CHANNEL_NAME.fullmatch(name):
                raise ConfigError(f"channel {name!r}: want 1 to 64 of [A-Za-z0-9._-]")
        for name in self.fw_cfg:
            if not _FW_CFG_NAME.fullmatch(name):
                raise ConfigError(f"fw_cfg {name!r}: want opt/..., at most 55 bytes")
        serials = [drive.serial for drive in self.drives]
        if len(set(serials)) != len(serials):
            raise ConfigError(f"drive serials {serials}: not unique")
        if not _CLOCK.fullmatch(self.clock):
            raise ConfigError(f"clock {self.clock!r}: want utc or YYYY-MM-DDThh:mm:ss")


@dataclass(frozen=True)
class Layout:
    """Files of one running machine, all in one directory."""

    dir: Path

    @property
    def console_socket(self) -> Path:
        """Listening unix socket of the serial console, one client at a time."""
        return self.dir / "console.sock"

    @property
    def console_log(self) -> Path:
        """Everything the guest wrote to the console."""
        return self.dir / "console.log"

    @property
    def qemu_log(self) -> Path:
        """QEMU's own messages."""
        return self.dir / "qemu.log"

    def channel(self, name: str) -> Path:
        """Listening unix socket of a virtio-serial port; one client."""
        return self.dir / f"{name}.sock"

    def fw_cfg(self, name: str) -> Path:
        """File with the contents of a fw_cfg entry."""
        return self.dir / f"fw_cfg-{name.replace('/', '_')}"


def check_socket_path(path: Path) -> None:
    """Raise ConfigError when `path` is too long for a unix socket address."""
    size = len(bytes(path))
    if size > UNIX_PATH_MAX:
        raise ConfigError(
            f"socket path {path}: {size} bytes, the kernel takes {UNIX_PATH_MAX}; "
            "use a shorter directory, e.g. one under /tmp"
        )


def _escape(value: object) -> str:
    """Quote a value for a QEMU option string (commas are doubled)."""
    return str(value).replace(",", ",,")


def _json(**members: object) -> str:
    return json.dumps({key.replace("_", "-"): value for key, value in members.items()})


def qemu_args(
    machine: Machine, accel: Accel, layout: Layout, qmp_fd: int, console_fd: int
) -> list[str]:
    """Return arguments for qemu-system-x86_64.

    qmp_fd: a connected socket for QMP; console_fd: a pipe that gets a copy of
    the console. Both are inherited by QEMU, as are the taps' fds.
    """
    sockets = [layout.console_socket, *(layout.channel(name) for name in machine.channels)]
    for path in sockets:
        check_socket_path(path)
    args = [
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display", "none",
        "-machine", "q35",
        "-run-with", "exit-with-parent=on",
        *accel.args,
        "-smp", str(machine.cpus),
        "-m", str(machine.memory_mib),
        "-rtc", f"base={machine.clock}",
        "-chardev", f"socket,id=qmp,fd={qmp_fd}",
        "-object", "monitor-qmp,id=monitor,chardev=qmp",
        "-chardev",
        f"socket,id=console,path={_escape(layout.console_socket)},server=on,wait=off,"
        f"logfile=/dev/fd/{console_fd},logappend=on",
        "-serial", "chardev:console",
        "-device", _json(driver="virtio-rng-pci"),
        "-kernel", str(machine.kernel),
        "-append", f"console=ttyS0 panic=-1 {_LESS_WORK} {machine.cmdline}".rstrip(),
    ]  # fmt: skip
    if machine.initrd is not None:
        args += ["-initrd", str(machine.initrd)]
    for index, drive in enumerate(machine.drives):
        node = f"drive{index}"
        args += [
            "-blockdev",
            json.dumps(
                {
                    "driver": "raw",
                    "node-name": node,
                    "read-only": drive.readonly,
                    "cache": {"no-flush": True},
                    "file": {
                        "driver": "file",
                        "filename": str(drive.path),
                        # Read-only images are shared by machines at once.
                        "locking": "off" if drive.readonly else "on",
                    },
                }
            ),
            "-device",
            _json(driver="virtio-blk-pci", drive=node, serial=drive.serial),
        ]
    if machine.channels:
        args += ["-device", _json(driver="virtio-serial-pci", id="channels")]
    for index, name in enumerate(machine.channels):
        args += [
            "-chardev",
            f"socket,id=channel{index},path={_escape(layout.channel(name))},server=on,wait=off",
            "-device",
            _json(driver="virtserialport", bus="channels.0", chardev=f"channel{index}", name=name),
        ]
    for name in machine.fw_cfg:
        args += ["-fw_cfg", f"name={name},file={_escape(layout.fw_cfg(name))}"]
    for index, tap in enumerate(machine.nets):
        args += [
            "-netdev", f"tap,id=net{index},fd={tap.fd}",
            "-device",
            _json(driver="virtio-net-pci", netdev=f"net{index}", mac=tap.mac, romfile=""),
        ]  # fmt: skip
    return args
