# SPDX-License-Identifier: Apache-2.0
"""PyPI packages from a hash-pinned lock: `@pypi//:name`.

There is one repository per package, made by pip in the host's configuration when
the package is first needed, so that no build action downloads anything; and a hub,
`@pypi`, of aliases. Why not pip.parse: that of Debian's rules_python (0.22) does
not run on Python 3.14.

    pypi = use_extension("//build/python:pypi.bzl", "pypi")
    pypi.lock(file = "//third_party/python:requirements.lock")
    use_repo(pypi, "pypi")

`@pypi//:name` is a py_library of each package, with its requirements as deps (its
Requires-Dist, evaluated for this machine; extras are not followed), and with its
byte code (unchecked: the files never change).
"""

load(":lock.bzl", "REFRESH", "parse_lock")

_BUILD = """\
load("@rules_python//python:defs.bzl", "py_library")

package(default_visibility = ["//visibility:public"])

py_library(
    name = "pkg",
    srcs = glob(["site-packages/**/*.py"], allow_empty = True),
    data = glob(["site-packages/**"], exclude = ["site-packages/**/*.py"]),
    imports = ["site-packages"],
    deps = {deps},
)
"""

def _package_impl(rctx):
    what = "%s==%s" % (rctx.attr.package, rctx.attr.version)
    rctx.file("requirement.txt", what + "".join([
        " \\\n    --hash=sha256:" + digest
        for digest in rctx.attr.hashes
    ]) + "\n")
    rctx.report_progress("pip install " + what)
    script = rctx.path(rctx.attr._install)
    rctx.watch(rctx.attr._host_pip)
    done = rctx.execute(
        [rctx.attr.interpreter, "-B", "-P", script, "requirement.txt", "site-packages"],
        timeout = 1200,
        environment = {"PYTHONPATH": str(script.dirname.dirname.dirname)},
    )
    if done.return_code:
        fail("\n".join([
            "cannot install %s, as pinned in third_party/python/requirements.lock:" % what,
            done.stderr.strip(),
            "If the index no longer has this version or file, move the pins by: " + REFRESH,
        ]))
    needs = json.decode(done.stdout)
    missing = [need for need in needs if need not in rctx.attr.locked]
    if missing:
        fail("%s needs %s, not in third_party/python/requirements.lock; refresh it by: %s" %
             (what, ", ".join(missing), REFRESH))
    deps = ["@pypi__%s//:pkg" % need for need in needs]
    rctx.file("BUILD.bazel", _BUILD.format(deps = json.encode(deps)))

_package = repository_rule(
    implementation = _package_impl,
    doc = "One package of the lock, installed by pip into site-packages/.",
    environ = ["DEVROOT_KEY"],  # another Python, other wheels and byte code
    attrs = {
        "package": attr.string(mandatory = True),
        "version": attr.string(mandatory = True),
        "hashes": attr.string_list(mandatory = True),
        "locked": attr.string_list(doc = "The names of all packages of the lock."),
        "interpreter": attr.string(default = "/usr/bin/python3"),
        "_host_pip": attr.label(default = "//build/python:host_pip.py"),
        "_install": attr.label(default = "//build/python:pypi_install.py"),
    },
)

def _hub_impl(rctx):
    lines = ['package(default_visibility = ["//visibility:public"])']
    for name in rctx.attr.packages:
        lines.append('alias(name = "%s", actual = "@pypi__%s//:pkg")' % (name, name))
    rctx.file("BUILD.bazel", "\n".join(lines) + "\n")

_hub = repository_rule(
    implementation = _hub_impl,
    doc = "Aliases, by name, of the packages of the lock.",
    attrs = {"packages": attr.string_list(mandatory = True)},
)

def _pypi_impl(mctx):
    for module in mctx.modules:
        for tag in module.tags.lock:
            if not module.is_root:
                fail("pypi.lock: only the root module has a lock")
            packages, error = parse_lock(
                mctx.read(tag.file),
                "//%s:%s" % (tag.file.package, tag.file.name),
            )
            if error:
                fail(error)
            names = sorted([package.name for package in packages])
            _hub(name = "pypi", packages = names)
            for package in packages:
                _package(
                    name = "pypi__" + package.name,
                    package = package.name,
                    version = package.version,
                    hashes = package.hashes,
                    locked = names,
                )

pypi = module_extension(
    implementation = _pypi_impl,
    doc = "Repositories of the packages in a requirements.lock.",
    tag_classes = {"lock": tag_class(attrs = {"file": attr.label(mandatory = True)})},
)
