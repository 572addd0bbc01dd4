# SPDX-License-Identifier: Apache-2.0
"""Tests of lock.bzl, also in Starlark."""

load("@bazel_skylib//lib:unittest.bzl", "asserts", "unittest")
load(":lock.bzl", "REFRESH", "normalise", "parse_lock")

_A = "a" * 64
_B = "b" * 64

def _reads_impl(ctx):
    env = unittest.begin(ctx)
    packages, error = parse_lock("\n".join([
        "# comment",
        "",
        "Foo.Bar-baz==1.0.post1+local \\",
        "    --hash=sha256:" + _A + " \\",
        "    --hash=sha256:" + _B,
        "one==2 --hash=sha256:" + _A,
        "",
    ]))
    asserts.equals(env, None, error)
    asserts.equals(env, ["foo_bar_baz", "one"], [package.name for package in packages])
    asserts.equals(env, ["1.0.post1+local", "2"], [package.version for package in packages])
    asserts.equals(env, [[_A, _B], [_A]], [package.hashes for package in packages])
    asserts.equals(env, ([], None), parse_lock(""))
    asserts.equals(env, "qemu_qmp", normalise("qemu.qmp"))
    return unittest.end(env)

reads_test = unittest.make(_reads_impl)

# text -> the line its error names
_WRONG = {
    "one": 1,
    "one==1": 1,
    "\n# c\none==1 --hash=md5:" + _A: 3,
    "one==1 --hash=sha256:" + _A[1:]: 1,
    "one==1 --hash=sha256:" + "g" * 64: 1,
    "one==1 --hash=sha256:" + _A.upper(): 1,
    "one>=1 --hash=sha256:" + _A: 1,
    "one==1==2 --hash=sha256:" + _A: 1,
    "==1 --hash=sha256:" + _A: 1,
    "one== --hash=sha256:" + _A: 1,
    "one[extra]==1 --hash=sha256:" + _A: 1,
    "one==1;python_version>'3' --hash=sha256:" + _A: 1,
    "one==1 --hash=sha256:" + _A + " --no-binary": 1,
    "-r other.txt": 1,
    "https://host.test/one.whl --hash=sha256:" + _A: 1,
    "one==1 --hash=sha256:" + _A + "\nOne==1 --hash=sha256:" + _A: 2,
    "one==1 --hash=sha256:" + _A + " \\": 1,
    "\\": 1,
}

def _refuses_impl(ctx):
    env = unittest.begin(ctx)
    for text, line in _WRONG.items():
        packages, error = parse_lock(text, "the.lock")
        asserts.equals(env, None, packages, "accepted: " + text)
        asserts.true(env, error.startswith("the.lock:%d: " % line), error)
        asserts.true(env, REFRESH in error, error)
    return unittest.end(env)

refuses_test = unittest.make(_refuses_impl)

def lock_tests(name):
    """Makes a test target for each test here, and the suite `name`."""
    unittest.suite(name, reads_test, refuses_test)
