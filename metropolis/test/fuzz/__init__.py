# SPDX-License-Identifier: Apache-2.0
"""Fuzzing of every parser of bytes from outside.

    ./bazelw run //metropolis/test/fuzz -- --seconds 600 [--keep]

`targets` has a function for each: for any bytes, it may raise only the parser's
own error, and some properties must hold. `fuzz` runs them under atheris, which
is guided by coverage; the test runs that for a minute or so, after the kept
corpus. With --keep, inputs that reach new code join the corpus: a file per
target, a line of hex per input, minimised.

Why not a folder with a file per input, as libFuzzer has it: one file can be
read, and reviewed as a change.

Limits: atheris has wheels for x86_64 only. Code without a Python parser, such
as the C of the shim, is not covered.
"""
