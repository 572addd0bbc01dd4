# SPDX-License-Identifier: Apache-2.0
"""Lints over the whole tree, as Bazel tests.

    ruff_test, mypy_test   run the tools: tools
    rules_test             runs ours: rules, layers, calls, words, claims
    lint_test              tests that each lint finds its faults
    tree                   the files

They read every file that git tracks (as it is in the work tree), so a new
package needs no registration, and files that are not added yet do not count.
For that they leave Bazel's sandbox: they follow a runfile's link to the
workspace and list it. So they have the tag `external` (run every time, never
cached). The whole set takes a few seconds. Without git (an unpacked archive)
all files count.

Why not aspects or a lint target per package: they see only the files in BUILD
files, and the lints have to find forgotten ones.

Limits: they read, and never fix. `ruff format` and `ruff check --fix` do, with
the settings in pyproject.toml.
"""
