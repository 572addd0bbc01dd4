# SPDX-License-Identifier: Apache-2.0
"""Fuzzing of every parser of bytes that come from outside.

    ./bazelw run //metropolis/test/fuzz -- --seconds 600 [--keep]

`targets` has a function for each: whatever bytes it is given, only the parser's
own error may come out, and some properties must hold. `fuzz` runs them under
atheris, which is guided by coverage; the test runs that for a minute or so,
after the kept corpus. With --keep, inputs that reach something new join the
corpus: a file a target, a line of hex an input, minimised.

Why a file and not a folder with a file an input, as libFuzzer has it: it can
be read, and reviewed as a change.

Limits: atheris has wheels for x86_64 only. What no parser is for, such as the
C of the shim, is not here.
"""
