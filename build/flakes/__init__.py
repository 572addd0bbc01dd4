# SPDX-License-Identifier: Apache-2.0
"""flakes: run tests many times on a busy machine; say which failed how often.

    ./bazelw run //build:flakes -- --runs 10
    ./bazelw run //build:flakes -- --runs 3 --vm
    ./bazelw run //build:flakes -- --runs 5 --json //osbase/... //x:y_test

A test that fails once in fifty runs fails somebody's change once a week. Most
such tests wait for less than the machine may take, and a quiet machine with
free cores never shows it. So each test runs as often as asked, beside loops
that keep the cores busy, one loop a core. What Bazel reports of them:
build/results.

- `tally`: how often which test failed; the table and the JSON, pure.
- `bazel`: bazelw and the busy loops as children, which end with this process.
- `flakes`: the command.

Why not `bazel test --runs_per_test` alone: it has no load beside the tests, and
of several failures it counts the targets and loses the logs at the next run.
Why not `--flaky_test_attempts`: it hides what this looks for.

Limits: it needs the workspace, so it is started by `bazelw run`. Bazel runs as
many tests at a time as there are cores; those of several machines alone.
"""
