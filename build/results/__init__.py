# SPDX-License-Identifier: Apache-2.0
"""Bazel's reports of the tests it ran.

- `events`: the results of one run of Bazel (its build event protocol), pure.
- `cases`: the test cases in the JUnit report that each result has, pure.
- `count`: the summary that continuous integration prints (.ci/run).

Why not the reports below bazel-testlogs: reports of removed targets stay there
as long as the output base exists.
"""
