# SPDX-License-Identifier: Apache-2.0
"""flakes: run tests many times on a busy machine; count their failures.

    ./bazelw run //build:flakes -- --runs 10
    ./bazelw run //build:flakes -- --runs 3 --vm
    ./bazelw run //build:flakes -- --runs 5 --json //osbase/... //x:y_test

A test that fails once in fifty runs fails somebody's change once a week. Most
such tests wait for less than the machine may take, and a quiet machine with
free cores never shows it. So each test runs many times, beside loops that keep
the cores busy, one loop per core. build/results reads Bazel's reports.

- `tally`: the failures of each test; the table and the JSON, pure.
- `bazel`: bazelw and the busy loops as children, which end with this process.
- `flakes`: the command.

Why not `bazel test --runs_per_test` alone: it has no load beside the tests; it
only counts the targets with failures, and loses their logs at the next run. Why
not `--flaky_test_attempts`: it hides the failures.

Limits: it needs the workspace, so start it by `bazelw run`. Bazel runs as many
tests at a time as there are cores; tests with several machines run alone.
"""
