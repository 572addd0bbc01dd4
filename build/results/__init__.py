# SPDX-License-Identifier: Apache-2.0
"""What Bazel says of the tests it ran.

- `events`: the results of one run of Bazel (its build event protocol), pure.
- `cases`: the test cases in the JUnit report that each result has, pure.
- `count`: what continuous integration prints at the end (.ci/run).

Why not the reports below bazel-testlogs: those of targets that are no longer
there stay for as long as the output base does.
"""
