# SPDX-License-Identifier: Apache-2.0
"""Tests that images are checked: which files, and that a fault fails the build."""

load("@bazel_skylib//lib:unittest.bzl", "analysistest", "asserts")

def _checked_impl(ctx):
    env = analysistest.begin(ctx)
    checks = [action for action in analysistest.target_actions(env) if action.mnemonic == "CheckPython"]
    asserts.equals(env, 1, len(checks))
    paths = [file.short_path for file in checks[0].inputs.to_list()]
    for path in ctx.attr.paths:
        asserts.true(env, path in paths, path + " is not checked")
    validated = analysistest.target_under_test(env)[OutputGroupInfo]._validation.to_list()
    asserts.equals(env, checks[0].outputs.to_list(), validated)
    return analysistest.end(env)

checked_test = analysistest.make(
    _checked_impl,
    doc = "A py_layer checks these files, whenever something is built of it.",
    attrs = {"paths": attr.string_list(mandatory = True)},
)
