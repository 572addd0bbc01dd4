# SPDX-License-Identifier: Apache-2.0
"""vm_pytest: a pytest target in a virtual machine. __init__.py has the reasons.

    load("//osbase/test/vm:defs.bzl", "vm_pytest")

    vm_pytest(
        name = "wireguard_test",
        srcs = ["wireguard_test.py"],
        deps = [":wireguard"],
    )
"""

load("@rules_python//python:defs.bzl", "PyInfo", _py_test = "py_test")
load("//build/python:defs.bzl", "VM_ENV", "VM_TAGS", "py_library")
load("//osbase/build:defs.bzl", "erofs_image", "run_tool")

_RUNFILES = "/runfiles"

def _place(file):
    """Returns a runfile's path on the disk, as in any runfiles tree."""
    path = file.short_path
    return _RUNFILES + "/" + (path[3:] if path.startswith("../") else "_main/" + path)

def _guest_layer_impl(ctx):
    dep = ctx.attr.dep
    script = ctx.actions.declare_file(ctx.label.name + ".sh")
    paths = ["_main"] + dep[PyInfo].imports.to_list()
    ctx.actions.write(script, "\n".join([
        "#!/bin/sh",
        "cd /tools%s/_main || exit" % _RUNFILES,
        "export PYTHONPATH=" + ":".join(["/tools%s/%s" % (_RUNFILES, path) for path in paths]),
        "export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1",
        'exec python3 -s %s "$@"' % ctx.file.main.short_path,
        "",
    ]))
    files = depset(transitive = [
        dep[DefaultInfo].default_runfiles.files,
        dep[PyInfo].transitive_sources,
    ]).to_list()
    out = ctx.actions.declare_file(ctx.label.name + ".tar")
    spec = ctx.actions.declare_file(ctx.label.name + ".spec.json")
    ctx.actions.write(spec, json.encode({
        "tars": [],
        "exclude": [],
        "files": [{"path": "/test", "source": script.path, "mode": 0o755}] + [
            {"path": _place(file), "source": file.path, "mode": 0o755}
            for file in files
        ],
        "symlinks": {},
        "dirs": {},
        "bytecode": True,
        # The workspace's code; wheels have files for other versions of Python.
        "must_compile": [_RUNFILES + "/_main/"],
    }))
    run_tool(
        ctx,
        arguments = ["tar", spec.path, out.path],
        inputs = files + [spec, script],
        outputs = [out],
        mnemonic = "GuestLayer",
        progress_message = "Packing the runfiles of %{label}",
    )
    return [DefaultInfo(files = depset([out]))]

_guest_layer = rule(
    implementation = _guest_layer_impl,
    doc = "The runfiles of a Python library, and /test, which runs its main with them.",
    attrs = {
        "dep": attr.label(providers = [PyInfo], mandatory = True),
        "main": attr.label(allow_single_file = [".py"], mandatory = True),
        "_tool": attr.label(default = "//osbase/build:layer", executable = True, cfg = "exec"),
    },
)

def vm_pytest(
        name,
        srcs,
        deps = [],
        data = [],
        args = [],
        memory_mib = 1024,
        cmdline = "",
        kernel = "//osbase/boot:vmlinux",
        initramfs = "//osbase/boot:initramfs",
        root = "//osbase/test/vm:root",
        size = "medium",
        tags = [],
        env = {},
        expect_failure = False,
        **kwargs):
    """Runs srcs by pytest, as root, in a separate machine.

    Args:
      name: by convention the file's
      srcs: test modules, and the conftest.py they use
      deps: what they import
      data: files at run time, found as in any test
      args: further pytest arguments
      memory_mib: the machine's memory
      cmdline: further parameters of the kernel
      kernel: a bzImage or a vmlinux
      initramfs: finds the disks by their serials, runs /tools/run; see init
      root: an erofs with Python and the programs that the test calls
      size: as for any test; an emulated machine takes about ten times as long
      tags: as for any test; those of a test with machines are added
      env: further environment of the host's side
      expect_failure: the test passes when pytest fails, and its report says so
      **kwargs: timeout, flaky ... as for any test
    """
    runner = "//build/python:pytest_main.py"
    modules = [src for src in srcs if not src.endswith("conftest.py")]
    py_library(
        name = name + "_guest",
        testonly = True,
        srcs = srcs + [runner],
        data = data + ["//:pyproject.toml"],
        tags = ["manual"],
        deps = deps + [
            "@pypi//:hypothesis",
            "@pypi//:pytest",
            "@pypi//:pytest_asyncio",
        ],
    )
    _guest_layer(
        name = name + "_layer",
        testonly = True,
        dep = name + "_guest",
        main = runner,
        tags = ["manual"],
    )
    erofs_image(
        name = name + "_disk",
        testonly = True,
        compression = "lz4",
        layers = [
            name + "_layer",
            "//osbase/test/agent:layer",
        ],
        programs = {"/run": "//osbase/test/agent:run"},
        tags = ["manual"],
    )
    disk = name + "_disk"
    _py_test(
        name = name,
        size = size,
        srcs = ["//osbase/test/vm:runner.py"],
        main = "//osbase/test/vm:runner.py",
        legacy_create_init = 0,
        args = [
            "--kernel=$(rootpath %s)" % kernel,
            "--initramfs=$(rootpath %s)" % initramfs,
            "--root=$(rootpath %s)" % root,
            "--disk=$(rootpath %s)" % disk,
            "--memory=%d" % memory_mib,
        ] + (["'--cmdline=%s'" % cmdline] if cmdline else []) + (["--expect-failure"] if expect_failure else []) + ["--"] + [
            "$(rootpath %s)" % module
            for module in modules
        ] + args,
        # The modules are inputs, since the arguments name them.
        data = srcs + [disk, initramfs, kernel, root],
        tags = tags + VM_TAGS,
        env = env | VM_ENV,
        deps = ["//osbase/test/vm:runner"],
        **kwargs
    )
