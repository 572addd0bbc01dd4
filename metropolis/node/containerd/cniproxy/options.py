# SPDX-License-Identifier: Apache-2.0
"""What new() and load() take. Each option changes the settings it is given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from metropolis.node import allocs
from metropolis.node.containerd.cniproxy.errors import InvalidConfigError

CNI_PLUGIN_NAME = "cni"
DEFAULT_NET_DIR = "/etc/cni/net.d"
DEFAULT_CNI_DIR = "/opt/cni/bin"
DEFAULT_MAX_CONF_NUM = 1
DEFAULT_PREFIX = "eth"
DEFAULT_TIMEOUT_S = 60.0

NETWORK_NAME = "metropolis"
LO_NETWORK_NAME = "cni-loopback"


@dataclass
class Settings:
    """What options set. `networks` are names: NETWORK_NAME, LO_NETWORK_NAME."""

    plugin_dirs: list[str] = field(default_factory=lambda: [DEFAULT_CNI_DIR])
    plugin_conf_dir: str = DEFAULT_NET_DIR
    plugin_max_conf_num: int = DEFAULT_MAX_CONF_NUM
    prefix: str = DEFAULT_PREFIX
    min_network_count: int = 1
    networks: list[str] = field(default_factory=list)
    socket_path: str = allocs.WORKLOAD_SOCKET
    timeout_s: float = DEFAULT_TIMEOUT_S

    @property
    def default_interface(self) -> str:
        """The name of the workload's interface."""
        return f"{self.prefix}0"


type Opt = Callable[[Settings], None]


def with_interface_prefix(prefix: str) -> Opt:
    """Name the interface prefix0; `eth` if not given."""

    def apply(settings: Settings) -> None:
        settings.prefix = prefix

    return apply


def with_plugin_dir(dirs: Sequence[str]) -> Opt:
    """Report these directories in get_config(); no plugin is executed."""

    def apply(settings: Settings) -> None:
        settings.plugin_dirs = list(dirs)

    return apply


def with_plugin_conf_dir(directory: str) -> Opt:
    """Report this directory in get_config(); no file is read."""

    def apply(settings: Settings) -> None:
        settings.plugin_conf_dir = directory

    return apply


def with_plugin_max_conf_num(count: int) -> Opt:
    """Report this number in get_config(); there is one network."""

    def apply(settings: Settings) -> None:
        settings.plugin_max_conf_num = count

    return apply


def with_min_network_count(count: int) -> Opt:
    """Require this many networks, lo included; 1 if not given."""

    def apply(settings: Settings) -> None:
        settings.min_network_count = count

    return apply


def with_socket(path: str) -> Opt:
    """Connect to the service at this unix socket. Not in go-cni."""

    def apply(settings: Settings) -> None:
        if not path.startswith("/"):
            raise InvalidConfigError(f"with_socket {path!r}: an absolute path is expected")
        settings.socket_path = path

    return apply


def with_timeout(seconds: float) -> Opt:
    """Set the deadline of calls that name none. Not in go-cni."""

    def apply(settings: Settings) -> None:
        if not seconds > 0:
            raise InvalidConfigError(f"with_timeout {seconds}: must be positive")
        settings.timeout_s = seconds

    return apply


def with_default_conf(settings: Settings) -> None:
    """Add the service's network."""
    _add(settings, NETWORK_NAME)


with_all_conf = with_default_conf


def with_lo_network(settings: Settings) -> None:
    """Add lo to results. The service brings it up in any case."""
    _add(settings, LO_NETWORK_NAME)


def _add(settings: Settings, network: str) -> None:
    if network not in settings.networks:
        settings.networks.append(network)
