# SPDX-License-Identifier: Apache-2.0
"""Counts the test cases in the JUnit files that Bazel left behind.

Prints why each skipped test was skipped, then one line of totals. Fails when
a case failed or when there was none at all.
"""

import sys
from pathlib import Path
from xml.etree import ElementTree


def main() -> int:
    logs = Path(sys.argv[1])
    passed = failed = 0
    skipped: list[str] = []
    for report in sorted(logs.rglob("test.xml")):
        target = report.parent.relative_to(logs)
        for case in ElementTree.parse(report).iter("testcase"):
            skip = case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None:
                failed += 1
            elif skip is not None:
                skipped.append(f"{target}: {case.get('name')}: {skip.get('message')}")
            else:
                passed += 1
    for line in skipped:
        print(f"skipped: {line}")
    print(f"{passed} passed, {failed} failed, {len(skipped)} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
