# SPDX-License-Identifier: Apache-2.0
"""The CNI exec protocol: an execution in, a command or an error out; pure.

It follows the CNI specification 1.1.0, sections 2 (parameters, operations) and
5 (errors). Versions differ: CHECK exists from 0.4.0 on, GC and STATUS from
1.1.0 on. Results are in `result`.

It is stricter than some plugins: an unsupported capability is an error, see
`capabilities`, and so is a key of another plugin's configuration that asks for
something that is not done, see `keys`: for ADD, and for STATUS, since no ADD
would be served. DEL is more lenient: it reads only the id, the interface
and the namespace in the environment: any attachment can always be deleted,
whatever has become of its configuration, or of the runtime that should send it.
"""

import enum
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_interface
from typing import Any, NoReturn, cast

from metropolis.node.core.network.cni import capabilities, keys, limits, ports, routes
from metropolis.node.core.network.cni.wire import Answer, Request
from metropolis.node.core.network.workloads.errors import InvalidArgument
from metropolis.node.core.network.workloads.model import Identity, PartText, Route, unknown_pod
from metropolis.node.core.network.workloads.validate import several

# A JSON value; callers mostly want objects.
type Json = dict[str, Any]
type Address = IPv4Address | IPv6Address
# The identity of an attachment: CNI_CONTAINERID and CNI_IFNAME.
type Key = tuple[str, str]

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
LATEST = VERSIONS[-1]
# The version of a configuration without cniVersion, by the specification.
UNSTATED_VERSION = "0.1.0"

_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_MAC = re.compile(r"([0-9a-fA-F]{2}([:-]))([0-9a-fA-F]{2}\2){4}[0-9a-fA-F]{2}")
_SEMVER = re.compile(r"[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}")
_PATH_MAX = 4096
_OWNER_MAX = 255  # see workloads.model.AttachIntent
_GC_KEYS = ("cni.dev/valid-attachments", "cni.dev/attachments")


class Code(enum.IntEnum):
    """Error codes: below 100 the specification's, from 100 on our own."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3  # also means: nothing to clean up
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    UNDECODABLE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50  # STATUS: an ADD would fail
    LIMITED = 51  # STATUS: existing containers may have limited connectivity
    ALREADY_EXISTS = 100
    EXHAUSTED = 101
    KERNEL_REFUSED = 102
    CHECK_FAILED = 103
    IN_USE = 104  # a process of the node listens on a host port
    INTERNAL = 999


class CniError(Exception):
    """An error as the runtime sees it; `version` is the protocol in use."""

    def __init__(self, code: Code, msg: str, details: str = "", version: str = LATEST) -> None:
        """Make one; `msg` is short, `details` says what to do."""
        super().__init__(f"{msg}: {details}" if details else msg)
        self.code = code
        self.msg = msg
        self.details = details
        self.version = version

    def answer(self) -> Answer:
        """Encode it as a plugin prints it."""
        error = {"cniVersion": self.version, "code": int(self.code), "msg": self.msg}
        if self.details:
            error["details"] = self.details
        return Answer(encode(error), exit_code=1)


def owner_of(network: str) -> str:
    """Return the owner of a network's attachments, at most 255 characters.

    A longer name, which the specification allows, is cut and has its hash at
    the end, after a character that names do not have: so every name is
    accepted, and each network is an owner of its own.
    """
    owner = f"cni {network}"
    if len(owner) <= _OWNER_MAX:
        return owner
    hashed = hashlib.blake2b(network.encode(), digest_size=16).hexdigest()
    return f"{owner[: _OWNER_MAX - len(hashed) - 1]}~{hashed}"


@dataclass(frozen=True)
class Add:
    """ADD. `prev_result` is the previous plugin's in a chain, None if first;
    `network` is the name in the configuration; `unknown` are keys of it that
    nothing here knows; the rest is as in AttachIntent.
    """

    version: str
    container_id: str
    if_name: str
    netns: str
    requested_ips: tuple[Address, ...] = ()
    requested_mac: bytes | None = None
    dns: Json = field(default_factory=dict)
    prev_result: Json | None = None
    network: str = ""
    parts: tuple[PartText, ...] = ()
    requested_mtu: int = 0
    routes: tuple[Route, ...] = ()
    unknown: tuple[str, ...] = ()
    identity: Identity | None = None

    @property
    def key(self) -> Key:
        """Return the identity of the attachment."""
        return self.container_id, self.if_name


@dataclass(frozen=True)
class Del:
    """DEL. `netns` is empty if it is absent or cannot be a path. Id and
    interface may be ones that no ADD accepts.
    """

    version: str
    container_id: str
    if_name: str
    netns: str


@dataclass(frozen=True)
class Check:
    """CHECK. `prev_result` is the final result of ADD."""

    version: str
    container_id: str
    if_name: str
    netns: str
    prev_result: Json


@dataclass(frozen=True)
class Gc:
    """GC of a network. `valid` lists the attachments to keep."""

    version: str
    valid: frozenset[Key]
    network: str


@dataclass(frozen=True)
class Status:
    """STATUS."""

    version: str


@dataclass(frozen=True)
class Version:
    """VERSION. `version` is the one that the caller speaks."""

    version: str


type Command = Add | Del | Check | Gc | Status | Version


def encode(value: Json) -> bytes:
    """Encode JSON as a plugin prints it, in ASCII, so it holds any string."""
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def parse(request: Request) -> Command:
    """Parse one execution; raise CniError, and nothing else."""
    command = request.env.get("CNI_COMMAND", "")
    if command == "DEL":
        return _parse_del(request)
    if len(request.argv) > 1:
        _fail(Code.INVALID_ENVIRONMENT, "a plugin takes no arguments", repr(request.argv[1:])[:200])
    if command == "VERSION":
        return Version(_stated_version(request.stdin))
    if command not in _PARSERS:
        what = f"CNI_COMMAND is {command[:80]!r}" if command else "CNI_COMMAND is not set"
        _fail(Code.INVALID_ENVIRONMENT, what, "ADD, DEL, CHECK, GC, STATUS or VERSION is expected")
    config = _config(request.stdin)
    version = _version(config, command)
    try:
        return _PARSERS[command](version, request.env, config)
    except CniError as error:
        error.version = version
        raise
    except RecursionError:  # from repr(), in a message about it
        raise CniError(Code.UNDECODABLE, "network configuration nests too deeply") from None


def _fail(code: Code, msg: str, details: str = "") -> NoReturn:
    raise CniError(code, msg, details)


def _decode(stdin: bytes) -> object:
    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text[:40]} is not finite")
        return number

    try:
        return cast(object, json.loads(stdin.decode(), parse_float=finite, parse_constant=finite))
    except (ValueError, RecursionError) as error:
        _fail(Code.UNDECODABLE, "network configuration on stdin is not JSON", str(error)[:200])


def _config(stdin: bytes) -> Json:
    config = _decode(stdin)
    if not isinstance(config, dict):
        kind = f"it is of type {type(config).__name__}"
        _fail(Code.UNDECODABLE, "network configuration on stdin is no JSON object", kind)
    return config


def _version(config: Json, command: str) -> str:
    version = config.get("cniVersion") or UNSTATED_VERSION
    if version not in VERSIONS:
        _fail(
            Code.INCOMPATIBLE_VERSION,
            "incompatible CNI version",
            f"cniVersion is {version!r:.80}, supported are {', '.join(VERSIONS)}",
        )
    since = _SINCE.get(command, VERSIONS[0])
    if VERSIONS.index(version) < VERSIONS.index(since):
        _fail(
            Code.INCOMPATIBLE_VERSION,
            f"{command} does not exist in CNI {version}",
            f"it does from {since} on",
        )
    name = config.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CniError(Code.INVALID_CONFIG, f"network name is {name!r:.80}", version=version)
    return str(version)


def _stated_version(stdin: bytes) -> str:
    """Return the version that VERSION comes with; it always answers."""
    try:
        config = _decode(stdin)
    except CniError:
        return LATEST
    version = config.get("cniVersion") if isinstance(config, dict) else None
    return version if isinstance(version, str) and _SEMVER.fullmatch(version) else LATEST


def _container_id(env: Mapping[str, str]) -> str:
    value = env.get("CNI_CONTAINERID", "")
    if len(value) > 255 or not _NAME.fullmatch(value):
        _fail(
            Code.INVALID_ENVIRONMENT,
            f"CNI_CONTAINERID is {value[:80]!r}",
            "1 to 255 letters, digits, _ . - are expected, the first a letter or digit",
        )
    return value


def _if_name(env: Mapping[str, str]) -> str:
    value = env.get("CNI_IFNAME", "")
    bad = not 1 <= len(value.encode(errors="surrogateescape")) <= 15 or value in (".", "..")
    if bad or not value.isprintable() or any(c in "/: " or c.isspace() for c in value):
        _fail(
            Code.INVALID_ENVIRONMENT,
            f"CNI_IFNAME is {value[:80]!r}",
            "1 to 15 bytes without /, : and white space are expected, not . or ..",
        )
    return value


def _is_path(value: str) -> bool:
    try:
        return value.startswith("/") and len(value.encode()) < _PATH_MAX
    except UnicodeEncodeError:  # bytes that are no UTF-8
        return False


def _netns(env: Mapping[str, str]) -> str:
    value = env.get("CNI_NETNS", "")
    if not _is_path(value):
        _fail(
            Code.INVALID_ENVIRONMENT,
            f"CNI_NETNS is {value[:80]!r}",
            f"an absolute path of a network namespace is expected, {len(value)} characters came",
        )
    return value


def _args(env: Mapping[str, str]) -> dict[str, str]:
    """Split CNI_ARGS, NAME=value;NAME=value. Labels (K8S_...) are accepted."""
    args: dict[str, str] = {}
    for pair in filter(None, env.get("CNI_ARGS", "").split(";")):
        name, separator, value = pair.partition("=")
        if not separator or not name:
            _fail(
                Code.INVALID_ENVIRONMENT, "CNI_ARGS is malformed", f"{pair[:80]!r}: no NAME=value"
            )
        args[name] = value
    if args.pop("IgnoreUnknown", "").lower() not in ("1", "t", "true"):
        known = ("IP", "MAC")
        unknown = [n for n in args if n not in known and not n.startswith("K8S_")]
        if unknown:
            _fail(
                Code.INVALID_ENVIRONMENT,
                f"CNI_ARGS has unknown {unknown[0][:80]!r}",
                "IgnoreUnknown=1 would have it ignored",
            )
    return args


def _addresses(values: object, source: str) -> tuple[Address, ...]:
    """Parse requested addresses, at most one per family.

    A prefix length may come with each and is ignored here: workloads get host
    routes.
    """
    if not isinstance(values, list):
        _fail(Code.INVALID_CONFIG, f"{source} is {values!r:.80}", "a list of addresses is expected")
    addresses: list[Address] = []
    for value in values:
        try:
            address = ip_interface(value if isinstance(value, str) else "").ip
        except ValueError:
            _fail(Code.INVALID_CONFIG, f"{source} has {value!r:.80}", "it is no IP address")
        if "%" in value:
            _fail(Code.INVALID_CONFIG, f"{source} has {value!r:.80}", "a zone is not possible")
        if any(a.version == address.version for a in addresses):
            _fail(Code.INVALID_CONFIG, f"{source} has {value!r:.80}", "one per family is possible")
        addresses.append(address)
    return tuple(sorted(addresses, key=lambda a: a.version))


def _mac(value: object, source: str) -> bytes:
    if not isinstance(value, str) or not _MAC.fullmatch(value):
        _fail(Code.INVALID_CONFIG, f"{source} is {value!r:.80}", "six hex pairs are expected")
    return bytes.fromhex(value.replace("-", "").replace(":", ""))


def _limits(config: Json, runtime: Json) -> tuple[PartText, ...]:
    own = {key: value for key, value in config.items() if limits.is_key(key)}
    try:
        if not capabilities.asks_for_nothing(own):
            return limits.part_of(own)
        return limits.part_of(runtime.get("bandwidth", {}), "runtimeConfig.bandwidth")
    except InvalidArgument as error:
        _fail(Code.INVALID_CONFIG, "the limits cannot be met", str(error))


def _ports(runtime: Json) -> tuple[PartText, ...]:
    try:
        return ports.part_of(runtime.get("portMappings", []), "runtimeConfig.portMappings")
    except InvalidArgument as error:
        _fail(Code.INVALID_CONFIG, "the port mappings cannot be met", str(error))


def _of_interface(config: Json, own: Json) -> tuple[int, tuple[Route, ...]]:
    """Return MTU and routes. own: `args.cni`."""
    try:
        return routes.mtu_of(config, own), routes.routes_of(config)
    except InvalidArgument as error:
        _fail(Code.INVALID_CONFIG, "the interface cannot be so", str(error))


def _object(config: Json, name: str) -> Json:
    value = config.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        _fail(Code.INVALID_CONFIG, f"{name} is {value!r:.80}", "an object is expected")
    return value


def _check_keys(config: Json) -> None:
    """Refuse a configuration that asks for what is not done."""
    if found := [*keys.refused(config)]:
        _fail(
            Code.UNSUPPORTED_FIELD,
            f"unsupported {several([repr(key[:80]) for key, _ in found])}",
            f"{several([f'{key[:80]} is {why}' for key, why in found])}; remove what is refused",
        )


def _check_capabilities(runtime: Json) -> None:
    """Refuse what asks for a capability that is not supported."""
    refused = {name: why for name in runtime if (why := capabilities.refusal(name))}
    if refused:
        _fail(
            Code.UNSUPPORTED_FIELD,
            f"unsupported runtimeConfig {several(repr(name[:80]) for name in refused)}",
            several(
                f"{name[:80]} is {runtime[name]!r:.200}; {why}" for name, why in refused.items()
            ),
        )


def _args_of_config(config: Json) -> Json:
    """Return `args.cni`; a value that is no object is ignored."""
    args = config.get("args")
    own = args.get("cni") if isinstance(args, dict) else None
    return own if isinstance(own, dict) else {}


def _dns(config: Json, runtime: Json) -> Json:
    """Merge the configuration's own dns with the runtime's.

    The capability has other names (servers, searches) than the result, and
    go-cni, which sets no JSON names, capitalises them.
    """
    dns: Json = {}
    own = _object(config, "dns")
    asked = {key.lower(): value for key, value in _object(runtime, "dns").items()}
    for name, alias in (("nameservers", "servers"), ("search", "searches"), ("options", "options")):
        value = asked.get(alias) or own.get(name) or []
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            _fail(Code.INVALID_CONFIG, f"dns {name} is {value!r:.80}", "strings are expected")
        if value:
            dns[name] = value
    domain = own.get("domain") or ""
    if not isinstance(domain, str):
        _fail(Code.INVALID_CONFIG, f"dns domain is {domain!r:.80}", "a string is expected")
    return dns | ({"domain": domain} if domain else {})


def _prev_result(config: Json) -> Json | None:
    """Check only that the lists of a result are lists of objects."""
    if config.get("prevResult") is None:
        return None
    result = _object(config, "prevResult")
    for name in ("interfaces", "ips", "routes"):
        value = result.get(name) or []
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            _fail(Code.INVALID_CONFIG, f"prevResult {name}: {value!r:.80}", "objects are expected")
    _object(result, "dns")
    return result


def _parse_add(version: str, env: Mapping[str, str], config: Json) -> Add:
    container_id, netns, if_name = _container_id(env), _netns(env), _if_name(env)
    args = _args(env)
    _check_keys(config)
    runtime = {
        name: value
        for name, value in _object(config, "runtimeConfig").items()
        if not capabilities.asks_for_nothing(value)
    }
    _check_capabilities(runtime)
    own = _args_of_config(config)
    ips: tuple[Address, ...] = ()
    if runtime.get("ips"):
        ips = _addresses(runtime["ips"], "runtimeConfig.ips")
    elif own.get("ips"):
        ips = _addresses(own["ips"], "args.cni.ips")
    elif args.get("IP"):
        ips = _addresses(args["IP"].split(","), "CNI_ARGS IP")
    mac = None
    if runtime.get("mac"):
        mac = _mac(runtime["mac"], "runtimeConfig.mac")
    elif own.get("mac"):
        mac = _mac(own["mac"], "args.cni.mac")
    elif args.get("MAC"):
        mac = _mac(args["MAC"], "CNI_ARGS MAC")
    dns, prev, name = _dns(config, runtime), _prev_result(config), str(config["name"])
    parts = _limits(config, runtime) + _ports(runtime)
    mtu, more = _of_interface(config, own)
    return Add(
        version=version,
        container_id=container_id,
        if_name=if_name,
        netns=netns,
        requested_ips=ips,
        requested_mac=mac,
        dns=dns,
        prev_result=prev,
        network=name,
        parts=parts,
        requested_mtu=mtu,
        routes=more,
        unknown=keys.unknown(config),
        identity=unknown_pod(args),
    )


def _parse_del(request: Request) -> Del:
    """Parse DEL. The configuration is read only for the answer's version. An id
    or an interface that no ADD accepts is no error: nothing exists by it.
    """
    stated = _stated_version(request.stdin)
    version = stated if stated in VERSIONS else LATEST
    netns = request.env.get("CNI_NETNS", "")
    if not _is_path(netns):
        netns = ""
    values = [request.env.get(name, "") for name in ("CNI_CONTAINERID", "CNI_IFNAME")]
    if not all(values):
        what = "CNI_CONTAINERID or CNI_IFNAME is not set"
        raise CniError(Code.INVALID_ENVIRONMENT, what, version=version)
    return Del(version, values[0], values[1], netns)


def _parse_check(version: str, env: Mapping[str, str], config: Json) -> Check:
    container_id, netns, if_name = _container_id(env), _netns(env), _if_name(env)
    prev = _prev_result(config)
    if prev is None:
        _fail(Code.INVALID_CONFIG, "CHECK without prevResult", "the result of ADD is expected")
    return Check(version, container_id, if_name, netns, prev)


def _parse_gc(version: str, env: Mapping[str, str], config: Json) -> Gc:
    """Parse the list of attachments to keep.

    An empty list, and Go's null for one, make everything stale; a missing list
    does not, since it was more likely forgotten. Runtimes before cni#1101 gave
    it another name.
    """
    name = next((key for key in _GC_KEYS if key in config), None)
    if name is None:
        _fail(Code.INVALID_CONFIG, f"GC without {_GC_KEYS[0]}", "a list, if empty, is expected")
    value = config[name] if config[name] is not None else []
    valid: set[Key] = set()
    for entry in value if isinstance(value, list) else [value]:
        fields = entry if isinstance(entry, dict) else {}
        key = (fields.get("containerID"), fields.get("ifname"))
        if not all(isinstance(part, str) and part for part in key):
            _fail(Code.INVALID_CONFIG, f"{name} has {entry!r:.80}", "two strings are expected")
        valid.add(cast(Key, key))
    return Gc(version, frozenset(valid), str(config["name"]))


def _parse_status(version: str, env: Mapping[str, str], config: Json) -> Status:
    _check_keys(config)
    return Status(version)


_PARSERS: dict[str, Callable[[str, Mapping[str, str], Json], Command]] = {
    "ADD": _parse_add,
    "CHECK": _parse_check,
    "GC": _parse_gc,
    "STATUS": _parse_status,
}
