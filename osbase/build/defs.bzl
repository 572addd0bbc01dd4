# SPDX-License-Identifier: Apache-2.0
"""Image rules: tars of Debian packages, Python code and files → images.

    py_layer(name = "code", deps = [":main"], prefix = "/usr/lib/metropolis")
    kernel_modules(name = "modules", modules = ["virtio_blk", "erofs"])
    initramfs(name = "initramfs", layers = [...], files = {"/init": "init"}, ...)
    erofs_image(name = "image", layers = BASE_LAYERS + PYTHON_LAYERS + [":code"], ...)
    oci_image(name = "busybox", tag = "localhost/busybox:latest", layers = [...])
    oci_archive(name = "preloaded", images = [":busybox", ":pause"])

Layers are tars and shadow each other in the order given. All outputs depend on
their inputs alone: times are 0, everything belongs to root. Nothing needs root,
mounts or the network.
"""

load("@rules_python//python:defs.bzl", "PyInfo")
load("//build/python:defs.bzl", "py_binary")

# A shell, coreutils, modprobe, init and poweroff: one static program, and its links.
BUSYBOX_LAYERS = ["//osbase/build:busybox"]

# The package of //osbase/build:busybox.
BUSYBOX_PACKAGES = ["@debian//:busybox-static"]

# Mount points and homes of an image that boots.
ROOT_DIRS = {
    "/dev": "0755",
    "/proc": "0755",
    "/root": "0700",
    "/run": "0755",
    "/sys": "0755",
    "/tmp": "1777",
    "/var": "0755",
}

# For an image that a test or a launcher controls: with its tools disk's directory.
DRIVEN_DIRS = ROOT_DIRS | {"/tools": "0755"}

# The least contents of an image. Later layers may shadow busybox's tools.
BASE_LAYERS = BUSYBOX_LAYERS + ["@debian//:libc6"]

# The packages of //osbase/build:python, which images use: CPython, and the libraries
# that its extension modules and common wheels load.
PYTHON_PACKAGES = ["@debian//:" + name for name in [
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "liblzma5",
    "libpython3.14-minimal",
    "libpython3.14-stdlib",
    "libssl3t64",
    "libstdc++6",
    "libuuid1",
    "libzstd1",
    "python3.14-minimal",
    "zlib1g",
]]

# CPython, byte-compiled, without its development, test and desktop parts.
PYTHON_LAYERS = ["//osbase/build:python"]

# The same with what pdb needs besides, for images that people debug in: goes
# after PYTHON_LAYERS.
PYTHON_DEBUG_LAYERS = ["//osbase/build:python_debug"]

# libnftables; `nft` is in INSPECT_PACKAGES.
NFTABLES_LAYERS = ["@debian//:" + name for name in [
    "libgmp10",
    "libjansson4",
    "libmnl0",
    "libnftables1",
    "libnftnl11",
    "libxtables12",
]]

# ip, tc, bridge, nft and wg. They need NFTABLES_LAYERS and PYTHON_LAYERS.
INSPECT_PACKAGES = ["@debian//:" + name for name in [
    "iproute2",
    "libbpf1",
    "libbsd0",
    "libcap2",
    "libedit2",
    "libelf1t64",
    "libmd0",
    "libpcre2-8-0",
    "libselinux1",
    "libtinfo6",
    "nftables",
    "wireguard-tools",
]]

# Links that make /bin and /lib what Debian's packages expect (merged /usr).
USRMERGE_LINKS = {
    "/bin": "usr/bin",
    "/lib": "usr/lib",
    "/lib64": "usr/lib64",
    "/sbin": "usr/sbin",
}

# No image uses these parts of Debian packages.
DEFAULT_EXCLUDE = [
    "/etc/default",
    "/etc/init.d",
    "/etc/logrotate.d",
    "/usr/lib/apt",
    "/usr/lib/initcpio",
    "/usr/lib/systemd",
    "/usr/lib/sysusers.d",
    "/usr/lib/tmpfiles.d",
    "/usr/lib/x86_64-linux-gnu/audit",
    "/usr/lib/x86_64-linux-gnu/gconv",
    "/usr/include",
    "/usr/libexec/libselinux",
    "/usr/libexec/cruft",
    "/usr/share/applications",
    "/usr/share/apport",
    "/usr/share/bash-completion",
    "/usr/share/bug",
    "/usr/share/dh-python",
    "/usr/share/doc",
    "/usr/share/doc-base",
    "/usr/share/gcc",
    "/usr/share/gdb",
    "/usr/share/info",
    "/usr/share/initramfs-tools",
    "/usr/share/libc-bin",
    "/usr/share/lintian",
    "/usr/share/locale",
    "/usr/share/man",
    "/usr/share/pixmaps",
    "/usr/share/zsh",
    "/usr/share/runit",
    # It needs bash.
    "/usr/bin/wg-quick",
    # iproute2: programs with further libraries, and unused data.
    "/usr/bin/ctstat",
    "/usr/bin/lnstat",
    "/usr/bin/nstat",
    "/usr/bin/rdma",
    "/usr/bin/routel",
    "/usr/bin/rtstat",
    "/usr/bin/ss",
    "/usr/lib/tc",
    "/usr/sbin/arpd",
    "/usr/sbin/dcb",
    "/usr/sbin/devlink",
    "/usr/sbin/dpll",
    "/usr/sbin/genl",
    "/usr/sbin/netshaper",
    "/usr/sbin/rtacct",
    "/usr/sbin/rtmon",
    "/usr/sbin/tipc",
    "/usr/sbin/vdpa",
]

_PYTHON_LIB = "/usr/lib/python3.14"

# The parts of the standard library that a node does not use.
PYTHON_EXCLUDE = [_PYTHON_LIB + "/" + part for part in [
    "__phello__",
    "_pyrepl",
    "curses",
    "dbm/gnu.py",
    "dbm/ndbm.py",
    "ensurepip",
    "idlelib",
    "lib-dynload/_bz2.*.so",
    "lib-dynload/_codecs_*.so",
    "lib-dynload/_ctypes_test.*.so",
    "lib-dynload/_curses*.so",
    "lib-dynload/_dbm.*.so",
    "lib-dynload/_sqlite3.*.so",
    "lib-dynload/_test*.so",
    "lib-dynload/_xxtestfuzz.*.so",
    "lib-dynload/readline.*.so",
    "lib-dynload/xx*.so",
    "lib2to3",
    "pydoc_data",
    "sqlite3",
    "test",
    "tkinter",
    "turtledemo",
    "venv",
]] + [
    "/usr/bin/pdb3*",
    "/usr/bin/py3*",
    "/usr/bin/pydoc3*",
    "/usr/bin/pygettext3*",
    "/usr/share/binfmts",
    "/usr/share/python3.14",
]

PYTHON_DEBUG_EXCLUDE = [
    one
    for one in PYTHON_EXCLUDE
    if one != _PYTHON_LIB + "/_pyrepl"
] + [_PYTHON_LIB + "/_pyrepl/windows_*"]

def _layer_name(file):
    """Returns a layer's name in reports: the Debian package, or the target."""
    return file.basename.removesuffix(".tar")

_TREE_ATTRS = {
    "layers": attr.label_list(
        allow_files = [".tar"],
        doc = "Tars, such as @debian//:NAME or a py_layer; later ones shadow earlier ones.",
    ),
    "placed": attr.label_keyed_string_dict(
        allow_files = True,
        doc = "File to a JSON list of [path, mode].",
    ),
    "symlinks": attr.string_dict(doc = "Path to target."),
    "dirs": attr.string_dict(doc = "Path to mode (octal): directories, even if empty."),
    "exclude": attr.string_list(doc = "Shell patterns of what to leave out of the layers."),
    "_tool": attr.label(default = "//osbase/build:layer", executable = True, cfg = "exec"),
}

def _soon(_os, _inputs):
    """Requests almost no core for the inputs of tests with machines, so that these
    actions do not wait behind other tests. See .bazelrc."""
    return {"cpu": 0.01}

def run_tool(ctx, **kwargs):
    """Adds the action that makes a part of an image with the rule's _tool.

    Args:
      ctx: the rule's
      **kwargs: arguments, inputs, outputs, mnemonic ... as for ctx.actions.run
    """
    ctx.actions.run(
        executable = ctx.executable._tool,
        env = {"PYTHONHASHSEED": "0"},
        use_default_shell_env = True,
        resource_set = _soon,
        **kwargs
    )

def _build_tree(ctx, format, out, bytecode = False, extra = [], extra_outputs = []):
    tars = depset(transitive = [target[DefaultInfo].files for target in ctx.attr.layers])
    files = []
    sources = []
    for target, places in ctx.attr.placed.items():
        found = target[DefaultInfo].files.to_list()
        if len(found) != 1:
            fail("%s: files takes targets of one file, %s has %d" %
                 (ctx.label, target.label, len(found)))
        sources += found
        for path, mode in json.decode(places):
            files.append({"path": path, "source": found[0].path, "mode": mode})
    spec = ctx.actions.declare_file(ctx.label.name + ".spec.json")
    ctx.actions.write(spec, json.encode_indent({
        "tars": [{"path": f.path, "layer": _layer_name(f)} for f in tars.to_list()],
        "exclude": ctx.attr.exclude,
        "files": sorted(files, key = lambda f: f["path"]),
        "symlinks": ctx.attr.symlinks,
        "dirs": ctx.attr.dirs,
        "bytecode": bytecode,
    }))
    run_tool(
        ctx,
        arguments = [format, spec.path, out.path] + extra,
        inputs = depset([spec] + sources, transitive = [tars]),
        outputs = [out] + extra_outputs,
        mnemonic = "Image" + format.title(),
        progress_message = "Making %s %%{label}" % format,
    )

def _tar_impl(ctx):
    out = ctx.actions.declare_file(ctx.label.name + ".tar")
    _build_tree(ctx, "tar", out, bytecode = ctx.attr.bytecode)
    return [DefaultInfo(files = depset([out]))]

_fs_layer = rule(
    implementation = _tar_impl,
    attrs = dict(_TREE_ATTRS, bytecode = attr.bool()),
)

def _initramfs_impl(ctx):
    out = ctx.actions.declare_file(ctx.label.name + ".cpio.zst")
    _build_tree(ctx, "initramfs", out)
    return [DefaultInfo(files = depset([out]))]

_initramfs = rule(implementation = _initramfs_impl, attrs = _TREE_ATTRS)

def _erofs_impl(ctx):
    out = ctx.actions.declare_file(ctx.label.name + ".erofs")
    manifest = ctx.actions.declare_file(ctx.label.name + ".manifest.json")
    _build_tree(
        ctx,
        "erofs",
        out,
        extra = ["--manifest", manifest.path, "--compression", ctx.attr.compression],
        extra_outputs = [manifest],
    )
    return [
        DefaultInfo(files = depset([out])),
        OutputGroupInfo(manifest = depset([manifest])),
    ]

_erofs_image = rule(
    implementation = _erofs_impl,
    attrs = dict(_TREE_ATTRS, compression = attr.string(mandatory = True)),
)

def _placed(files, programs):
    """Converts two {path: label} to the rules' {label: JSON of [path, mode]...}."""
    placed = {}
    for mapping, mode in [(files, 0o644), (programs, 0o755)]:
        for path, label in mapping.items():
            placed.setdefault(str(native.package_relative_label(label)), []).append([path, mode])
    return {label: json.encode(places) for label, places in placed.items()}

def fs_layer(name, layers = [], files = {}, programs = {}, symlinks = {}, dirs = {}, exclude = [], bytecode = False, **kwargs):
    """A tar of other tars and of single files, `NAME.tar`.

    Args:
      name: of the target
      layers: tars; later ones shadow earlier ones
      files: path in the image to label, mode 0644
      programs: the same, mode 0755
      symlinks: path in the image to target
      dirs: path in the image to mode, e.g. "0755": also when they are empty
      exclude: shell patterns of files to leave out of the layers; one that
        matches a directory leaves out all below it; `**` matches across names
      bytecode: compile the Python files
      **kwargs: visibility, tags ...
    """
    _fs_layer(
        name = name,
        layers = layers,
        placed = _placed(files, programs),
        symlinks = symlinks,
        dirs = dirs,
        exclude = exclude,
        bytecode = bytecode,
        **kwargs
    )

def initramfs(name, layers = [], files = {}, programs = {}, symlinks = {}, dirs = {}, exclude = [], **kwargs):
    """An initial RAM file system (cpio, zstd), `NAME.cpio.zst`; see fs_layer."""
    _initramfs(
        name = name,
        layers = layers,
        placed = _placed(files, programs),
        symlinks = dict(USRMERGE_LINKS, **symlinks),
        dirs = dirs,
        exclude = DEFAULT_EXCLUDE + exclude,
        **kwargs
    )

def erofs_image(name, layers = [], files = {}, programs = {}, symlinks = {}, dirs = {}, exclude = [], compression = "lz4hc,level=9", **kwargs):
    """A read-only root file system, `NAME.erofs`.

    The output group `manifest` has NAME.manifest.json: each path, its kind, mode,
    size and the layer it came from.

    Args:
      name: of the target
      layers: see fs_layer
      files: see fs_layer
      programs: see fs_layer
      symlinks: see fs_layer
      dirs: see fs_layer
      exclude: see fs_layer; documentation and the like is always left out
      compression: mkfs.erofs -z. LZ4 unpacks several times as fast as Zstandard,
        which matters in an emulated virtual machine.
      **kwargs: visibility, tags ...
    """
    _erofs_image(
        name = name,
        layers = layers,
        placed = _placed(files, programs),
        symlinks = dict(USRMERGE_LINKS, **symlinks),
        dirs = dirs,
        exclude = DEFAULT_EXCLUDE + exclude,
        compression = compression,
        **kwargs
    )

def _file_path(file, prefix):
    """Returns a runfile's path: workspace below prefix, PyPI below site-packages."""
    if not file.short_path.startswith("../"):
        return prefix + "/" + file.short_path
    _, found, rest = file.short_path.partition("/site-packages/")
    return prefix + "/site-packages/" + rest if found else None

def _wanted(file):
    """Returns whether a runfile belongs on a node: no tests, C or type stubs."""
    path = file.short_path
    if path.startswith("../"):
        # Wheels contain tests, headers and scripts for developers.
        for part in ["/tests/", "/test/", "/testing/", "/include/", "/bin/", ".dist-info/"]:
            if part in path:
                return False
        return not path.endswith((".pyi", ".pyx", ".pxd", ".h", ".c", ".proto", "py.typed"))
    return not path.endswith(("_test.py", ".pyi", ".proto", "conftest.py"))

def _check(ctx, files):
    """Adds the action that checks Python files; returns its output, an empty file."""
    done = ctx.actions.declare_file(ctx.label.name + ".checked")
    args = ctx.actions.args()
    args.use_param_file("@%s", use_always = True)  # as workers need it
    args.set_param_file_format("multiline")
    args.add_all([done, ctx.file._settings])
    args.add_all(files, map_each = _import_path)
    ctx.actions.run(
        executable = ctx.executable._check,
        arguments = [args],
        inputs = files + [ctx.file._settings],
        outputs = [done],
        mnemonic = "CheckPython",
        progress_message = "Checking Python of %{label}",
        use_default_shell_env = True,
        execution_requirements = {
            "requires-worker-protocol": "json",
            "supports-workers": "1",
        },
    )
    return done

def _import_path(file):
    return "%s=%s" % (file.short_path, file.path)

def _py_layer_impl(ctx):
    files = depset(transitive = [
        depset(transitive = [
            dep[PyInfo].transitive_sources,
            dep[DefaultInfo].default_runfiles.files,
        ])
        for dep in ctx.attr.deps
    ])
    programs = {
        dep[DefaultInfo].files_to_run.executable: None
        for dep in ctx.attr.deps
        if dep[DefaultInfo].files_to_run and dep[DefaultInfo].files_to_run.executable
    }
    done = _check(ctx, [
        file
        for file in files.to_list()
        if file.extension in ("py", "pyi") and not file.short_path.startswith("../") and file not in programs
    ])
    groups = {"code": [], "pypi": []}
    for file in files.to_list():
        path = _file_path(file, ctx.attr.prefix)
        if path and file not in programs and _wanted(file):
            groups["pypi" if file.short_path.startswith("../") else "code"].append((path, file))
    outs = []
    for group, places in groups.items():
        # Two tars, so that a change of our code does not repack the wheels.
        out = ctx.actions.declare_file("%s-%s.tar" % (ctx.label.name, group))
        spec = ctx.actions.declare_file(out.basename + ".spec.json")
        ctx.actions.write(spec, json.encode({
            "tars": [],
            "exclude": [],
            "files": [{"path": p, "source": f.path, "mode": 0o644} for p, f in sorted(places)],
            "symlinks": {},
            "dirs": {},
            "bytecode": True,
            # Wheels have files for other versions of Python.
            "must_compile": ["/"] if group == "code" else [],
        }))
        run_tool(
            ctx,
            arguments = ["tar", spec.path, out.path],
            inputs = [spec] + [file for _, file in places],
            outputs = [out],
            mnemonic = "PyLayer",
            progress_message = "Compiling Python of %{label} (" + group + ")",
        )
        outs.append(out)
    return [
        DefaultInfo(files = depset(outs)),
        # Bazel makes this group of whatever is in a build: an image with a fault is
        # not made, and no test or program runs that needs it.
        OutputGroupInfo(_validation = depset([done])),
    ]

py_layer = rule(
    implementation = _py_layer_impl,
    doc = "The Python code of deps and all they import, byte-compiled: the workspace's " +
          "below prefix, PyPI packages below prefix/site-packages, without tests. " +
          "The workspace's must compile and pass //build/python:check.",
    attrs = {
        "deps": attr.label_list(providers = [PyInfo], mandatory = True),
        "prefix": attr.string(mandatory = True, doc = "Such as /usr/lib/metropolis."),
        "_check": attr.label(default = "//build/python:check", executable = True, cfg = "exec"),
        "_settings": attr.label(default = "//:pyproject.toml", allow_single_file = True),
        "_tool": attr.label(default = "//osbase/build:layer", executable = True, cfg = "exec"),
    },
)

def _kernel_modules_impl(ctx):
    out = ctx.actions.declare_file(ctx.label.name + ".tar")
    args = ctx.actions.args()
    args.add(out)
    args.add_all(ctx.files.kernel, before_each = "--tar")
    args.add_all(ctx.attr.modules, before_each = "--module")
    run_tool(
        ctx,
        arguments = [args],
        inputs = ctx.files.kernel,
        outputs = [out],
        mnemonic = "KernelModules",
        progress_message = "Selecting kernel modules of %{label}",
    )
    return [DefaultInfo(files = depset([out]))]

kernel_modules = rule(
    implementation = _kernel_modules_impl,
    doc = "A layer with the kernel modules named, all they need, and their indexes.",
    attrs = {
        "modules": attr.string_list(mandatory = True),
        "kernel": attr.label_list(
            default = ["@debian//:linux-base", "@debian//:linux-modules"],
            allow_files = [".tar"],
        ),
        "_tool": attr.label(default = "//osbase/build:kmodules", executable = True, cfg = "exec"),
    },
)

def _oci_image_impl(ctx):
    out = ctx.actions.declare_file(ctx.label.name + ".oci.tar")
    args = ctx.actions.args()
    args.add(out)
    args.add("--tag", ctx.attr.tag)
    args.add_all(ctx.files.layers, before_each = "--layer")
    for option, values in [
        ("entrypoint", ctx.attr.entrypoint),
        ("cmd", ctx.attr.cmd),
        ("env", ["%s=%s" % item for item in ctx.attr.env.items()]),
    ]:
        args.add_all(["--%s=%s" % (option, value) for value in values])
    run_tool(
        ctx,
        arguments = [args],
        inputs = ctx.files.layers,
        outputs = [out],
        mnemonic = "OciImage",
        progress_message = "Making OCI image %{label}",
    )
    return [DefaultInfo(files = depset([out]))]

oci_image = rule(
    implementation = _oci_image_impl,
    doc = "An OCI image layout as a tar, for `ctr images import`.",
    attrs = {
        "layers": attr.label_list(allow_files = [".tar"], mandatory = True),
        "tag": attr.string(mandatory = True, doc = "Such as localhost/busybox:latest."),
        "entrypoint": attr.string_list(),
        "cmd": attr.string_list(),
        "env": attr.string_dict(),
        "_tool": attr.label(default = "//osbase/build:oci", executable = True, cfg = "exec"),
    },
)

def _oci_archive_impl(ctx):
    out = ctx.actions.declare_file(ctx.label.name + ".tar")
    run_tool(
        ctx,
        arguments = [out.path] + [image.path for image in ctx.files.images],
        inputs = ctx.files.images,
        outputs = [out],
        mnemonic = "OciArchive",
        progress_message = "Putting images together to %{label}",
    )
    return [DefaultInfo(files = depset([out]))]

oci_archive = rule(
    implementation = _oci_archive_impl,
    doc = "Several images of oci_image in one tar, which one `ctr images import` takes.",
    attrs = {
        "images": attr.label_list(allow_files = [".tar"], mandatory = True),
        "_tool": attr.label(default = "//osbase/build:oci_archive", executable = True, cfg = "exec"),
    },
)

def image_size(name, image):
    """`bazel run` prints the space use of `image`, an erofs_image; --json: in full."""
    native.filegroup(
        name = name + "_manifest",
        srcs = [image],
        output_group = "manifest",
    )
    py_binary(
        name = name,
        srcs = ["//osbase/build:report.py"],
        args = ["$(rootpath %s)" % image, "$(rootpath :%s_manifest)" % name],
        data = [image, ":%s_manifest" % name],
        main = "//osbase/build:report.py",
        deps = ["//osbase/build:erofs"],
    )
