# SPDX-License-Identifier: Apache-2.0
"""Lints over the whole tree, as Bazel tests.

They look at every file that git tracks (as it is in the work tree), so a new
package is covered without being registered, and unfinished files that were not
added yet disturb nobody. For that they leave Bazel's world: they follow a
runfile's link to the workspace and list it, hence the tag `external` (run every
time, never cached). The whole set takes a few seconds. Without git (an unpacked
archive) all files count.

Why not aspects or a lint target a package: they see only what a BUILD file
names, and what a BUILD file forgot is just what has to be found.

Limits: they read, and never fix. `ruff format` and `ruff check --fix` do, with
the settings in pyproject.toml.
"""
