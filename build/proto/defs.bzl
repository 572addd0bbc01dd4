# SPDX-License-Identifier: Apache-2.0
"""py_grpc_library: Python modules of .proto files, with types, by grpcio-tools.

A proto is imported by its path from the workspace's root, in other protos and (with
_pb2 for .proto) in Python. A proto from elsewhere, such as a Debian package, takes
the path of the target that names it: //third_party/cri with api.proto is
`third_party/cri/api.proto` and `third_party.cri.api_pb2`.
"""

load("@rules_python//python:defs.bzl", "PyInfo")

ProtoPathsInfo = provider(
    doc = "Protos, by the path they are imported by.",
    fields = {"protos": "depset of struct(path = import path, file = File)"},
)

def _py_proto_impl(ctx):
    own = [
        struct(path = "/".join([part for part in [ctx.label.package, src.basename] if part]), file = src)
        for src in ctx.files.srcs
    ]
    protos = depset(own, transitive = [dep[ProtoPathsInfo].protos for dep in ctx.attr.deps])
    modules = []
    stubs = []
    for src in ctx.files.srcs:
        stem = src.basename.removesuffix(".proto").replace("-", "_")
        for kind in ["_pb2", "_pb2_grpc"] if ctx.attr.grpc else ["_pb2"]:
            modules.append(ctx.actions.declare_file(stem + kind + ".py"))
            stubs.append(ctx.actions.declare_file(stem + kind + ".pyi"))

    args = ctx.actions.args()
    args.add("--out", ctx.bin_dir.path + ("/" + ctx.label.workspace_root if ctx.label.workspace_root else ""))
    if ctx.attr.grpc:
        args.add("--grpc")
    args.add_all(protos, map_each = _map_flag)
    args.add_all([proto.path for proto in own])
    ctx.actions.run(
        executable = ctx.executable._generate,
        arguments = [args],
        inputs = depset([proto.file for proto in protos.to_list()]),
        outputs = modules + stubs,
        use_default_shell_env = True,
        mnemonic = "PyProto",
        progress_message = "Generating Python of %{label}",
    )
    runtime = [ctx.attr._protobuf] + ([ctx.attr._grpcio] if ctx.attr.grpc else [])
    deps = ctx.attr.deps + runtime
    return [
        ProtoPathsInfo(protos = protos),
        DefaultInfo(
            files = depset(modules + stubs),
            runfiles = ctx.runfiles(modules + stubs).merge_all([dep[DefaultInfo].default_runfiles for dep in deps]),
        ),
        PyInfo(
            transitive_sources = depset(modules, transitive = [dep[PyInfo].transitive_sources for dep in deps]),
            imports = depset(transitive = [dep[PyInfo].imports for dep in deps]),
            has_py2_only_sources = False,
            has_py3_only_sources = True,
            uses_shared_libraries = True,
        ),
    ]

def _map_flag(proto):
    return "--map=%s=%s" % (proto.path, proto.file.path)

_py_proto = rule(
    implementation = _py_proto_impl,
    doc = "Generates the modules of protos; a Python library.",
    attrs = {
        "srcs": attr.label_list(allow_files = [".proto"], mandatory = True),
        "deps": attr.label_list(providers = [ProtoPathsInfo, PyInfo]),
        "grpc": attr.bool(default = True),
        "_generate": attr.label(default = "//build/proto:generate", executable = True, cfg = "exec"),
        "_grpcio": attr.label(default = "@pypi//:grpcio"),
        "_protobuf": attr.label(default = "@pypi//:protobuf"),
    },
)

def py_grpc_library(name, srcs, deps = [], grpc = True, visibility = ["//visibility:public"], **kwargs):
    """Makes the Python modules of protos, for deps of py_library and others.

    Args:
      name: by convention the file's: workload_py_grpc for workload.proto
      srcs: .proto files of this package, another one or another repository
      deps: the py_grpc_library targets of the protos these import
      grpc: whether there are services; without, *_pb2_grpc is not made
      visibility: public by default
      **kwargs: tags and the like
    """
    _py_proto(
        name = name,
        srcs = srcs,
        deps = deps,
        grpc = grpc,
        visibility = visibility,
        **kwargs
    )
