# SPDX-License-Identifier: Apache-2.0
"""What a test needs around it."""

from build.ide.needs import Need, TestFile, of_tests

BUILD = """
py_pytest(name = "plain_test", deps = [":x"])
py_pytest(name = "off_test", netns = False)
vm_pytest(name = "kernel_test")
py_library(name = "library_test", srcs = ["library_test.py"])
_MANY = ["a_test", "b_test"]
[py_pytest(name = name, netns = True) for name in _MANY]
py_pytest(name = "shape", srcs = ["one_test.py", "//x:two_test.py"], netns = True, vm = True)
"""


def test_needs_by_the_build_file() -> None:
    assert of_tests(BUILD) == {
        "plain_test": TestFile(Need.NOTHING, "plain_test"),
        "off_test": TestFile(Need.NOTHING, "off_test"),
        "kernel_test": TestFile(Need.MACHINE, "kernel_test"),
        "a_test": TestFile(Need.NETNS, "a_test"),
        "b_test": TestFile(Need.NETNS, "b_test"),
        "shape": TestFile(Need.MACHINE, "shape"),
        "one_test": TestFile(Need.MACHINE, "shape"),
        "//x:two_test": TestFile(Need.MACHINE, "shape"),
    }
