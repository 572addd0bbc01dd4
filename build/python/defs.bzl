# SPDX-License-Identifier: Apache-2.0
"""Python rules: py_library, py_binary, py_pytest.

These are thin macros over rules_python with common settings: targets are public,
no __init__.py is generated, the import root is the workspace's. Policy belongs
here, so BUILD files load these and never rules_python.
"""

load("@rules_python//python:defs.bzl", _py_binary = "py_binary", _py_library = "py_library", _py_test = "py_test")

_PUBLIC = ["//visibility:public"]

def py_library(name, visibility = _PUBLIC, **kwargs):
    """A library; srcs, deps, data and the rest are those of rules_python."""
    _py_library(name = name, visibility = visibility, **kwargs)

# Also for `bazel run`, which ignores --action_env.
_SAFE_PATH = {"PYTHONSAFEPATH": "1"}

def py_binary(name, visibility = _PUBLIC, env = {}, **kwargs):
    """A program; main defaults to name.py. On PYTHONPATH: the workspace's root."""
    _py_binary(
        name = name,
        visibility = visibility,
        env = _SAFE_PATH | env,
        legacy_create_init = 0,
        **kwargs
    )

# Tags of a test that boots virtual machines, of any rule; resources: see .bazelrc.
VM_TAGS = ["resources:cpu:0.01", "resources:vm:1", "vm"]
VM_ENV = {"TEST_BOOTS_VMS": "1"}

def py_pytest(
        name,
        srcs,
        deps = [],
        data = [],
        args = [],
        env = {},
        netns = False,
        vm = False,
        tags = [],
        visibility = _PUBLIC,
        **kwargs):
    """Runs srcs by pytest, with pytest-asyncio and hypothesis.

    Args:
      name: by convention the file's: event_test for event_test.py
      srcs: test modules, and the conftest.py they use
      deps: what they import
      data: files at run time
      args: further pytest arguments; those on the command line come after
      env: further environment
      netns: run in a new user, network and mount namespace, as its root, with
        an empty /run and a /sys that shows the new network; all interfaces
        are new and down, as after `unshare -Urnm`
      vm: boots virtual machines, so --config=quick excludes it; without this, no
        machine starts (osbase/test/qemu). Tests with several machines at once
        take all CPUs and have the tag "exclusive"
      tags: as for any test
      visibility: public, as //metropolis/test/security:claims runs some
      **kwargs: size, timeout, flaky, shard_count ... as for any test
    """
    modules = [src for src in srcs if not src.endswith("conftest.py")]
    runner = "//build/python:pytest_main.py"
    _py_test(
        name = name,
        srcs = srcs + [runner],
        main = runner,
        legacy_create_init = 0,
        deps = deps + [
            "@pypi//:hypothesis",
            "@pypi//:pytest",
            "@pypi//:pytest_asyncio",
        ],
        data = data + ["//:pyproject.toml"],
        args = (["--netns"] if netns else []) + ["$(rootpath %s)" % module for module in modules] + args,
        env = env | (VM_ENV if vm else {}),
        tags = tags + (VM_TAGS if vm else []),
        visibility = visibility,
        **kwargs
    )
