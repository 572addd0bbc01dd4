# SPDX-License-Identifier: Apache-2.0
"""Generate Python from .proto files: modules, gRPC stubs, and .pyi of both.

    generate [--grpc] --out DIR [--map VIRTUAL=FILE ...] VIRTUAL ...
    generate --go IMPORT_PATH --out DIR [--map ...] VIRTUAL

VIRTUAL is a proto's import path, and determines the paths of its modules:
a/b.proto gives DIR/a/b_pb2.py, .pyi and, with --grpc, b_pb2_grpc.py, .pyi. Only
mapped protos and google/protobuf/* can be imported.

protoc and the grpc plugin come from grpcio-tools, so they always fit the run
time of the same lock. mypy-protobuf writes the .pyi of stubs, as protoc does
not.

With --go the output is Go in one package: DIR/a/b.pb.go and b_grpc.pb.go, by
the devroot's protoc-gen-go and protoc-gen-go-grpc.
"""

import argparse
import pathlib
import stat
import sys
import tempfile
from importlib import resources

from grpc_tools import protoc

PLUGIN = """\
#!{python}
import sys
sys.path[:] = {path!r}
from mypy_protobuf.main import grpc
grpc()
"""


def outputs(proto: str, *, grpc: bool) -> list[str]:
    """Return the files of one proto, relative to the output directory."""
    stem = proto.removesuffix(".proto").replace("-", "_")
    kinds = ("_pb2", "_pb2_grpc") if grpc else ("_pb2",)
    return [f"{stem}{kind}{suffix}" for kind in kinds for suffix in (".py", ".pyi")]


def generate(
    protos: list[str], maps: dict[str, pathlib.Path], out: pathlib.Path, *, grpc: bool
) -> int:
    """Run protoc; its messages go to stderr. Return its exit status."""
    out.mkdir(parents=True, exist_ok=True)
    known = resources.files("grpc_tools") / "_proto"
    command = ["protoc", f"--proto_path={known}"]
    command += [f"--proto_path={virtual}={file}" for virtual, file in maps.items()]
    command += [f"--python_out={out}", f"--pyi_out={out}"]
    with tempfile.TemporaryDirectory() as scratch:
        if grpc:
            plugin = pathlib.Path(scratch, "protoc-gen-mypy_grpc")
            plugin.write_text(PLUGIN.format(python=sys.executable, path=sys.path))
            plugin.chmod(stat.S_IRWXU)
            command += [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}"]
            command += [f"--plugin={plugin}"]
        return int(protoc.main([*command, *protos]))


def generate_go(proto: str, package: str, maps: dict[str, pathlib.Path], out: pathlib.Path) -> int:
    """Like generate(), for Go; `package` is the import path."""
    options = f"paths=source_relative,M{proto}={package}"
    command = ["protoc", *(f"--proto_path={virtual}={file}" for virtual, file in maps.items())]
    command += [f"--go_out={options}:{out}", f"--go-grpc_out={options}:{out}"]
    return int(protoc.main([*command, proto]))


def main() -> None:
    """Run the command; exit with protoc's status."""
    parser = argparse.ArgumentParser(
        prog="generate",
        usage="%(prog)s [options] --out DIR --map VIRTUAL=FILE... VIRTUAL...",
        description="Generate Python of .proto files; the command of the rules in "
        "build/proto/defs.bzl.",
        epilog="exit status: that of protoc; 2 for wrong arguments",
    )
    add = parser.add_argument
    add("--grpc", action="store_true", help="generate the modules of services, too")
    add(
        "--go",
        metavar="IMPORT_PATH",
        help="generate Go of the first file, as this package; default: Python",
    )
    add("--out", metavar="DIR", type=pathlib.Path, required=True, help="the output's root")
    add(
        "--map", action="append", default=[], metavar="VIRTUAL=FILE",
        help="where a file is that protos import as VIRTUAL; repeatable",
    )  # fmt: skip
    add("protos", nargs="+", metavar="VIRTUAL", help="the files to generate from")
    given = parser.parse_args()
    maps = dict(entry.split("=", 1) for entry in given.map)
    files = {virtual: pathlib.Path(file) for virtual, file in maps.items()}
    if given.go:
        sys.exit(generate_go(given.protos[0], given.go, files, given.out))
    sys.exit(generate(given.protos, files, given.out, grpc=given.grpc))


if __name__ == "__main__":
    main()
