# SPDX-License-Identifier: Apache-2.0
"""lint_test: a py_pytest that reads the work tree instead of its inputs."""

load("//build/python:defs.bzl", "py_pytest")

def lint_test(name, deps = [], **kwargs):
    """A test in NAME.py that lints the tree; see __init__.py for the why.

    Args:
      name: of the target and its source
      deps: in addition to the list of files
      **kwargs: as for py_pytest
    """
    py_pytest(
        name = name,
        srcs = [name + ".py"],
        deps = ["//build/lint:tree"] + deps,
        # Its inputs are not declared: never take its result from a cache.
        tags = ["external", "lint"],
        **kwargs
    )
