# SPDX-License-Identifier: Apache-2.0
"""How flows are found by their mark; cutting them is tested by the rules'
policy_change_test.
"""

from metropolis.node.core.network.policy.revoke import selections


def test_both_halves() -> None:
    """An identity is a source, or a destination."""
    found = selections([5, 65535])
    marks = {5 << 16 | 7, 7 << 16 | 5, 5 << 16, 5, 0xFFFF0000, 0xFFFF}
    others = {7 << 16 | 8, 7, 0xFFFE, 4 << 16, 0}

    def selected(mark: int) -> bool:
        return any(mark & mask == wanted for wanted, mask in found)

    assert all(map(selected, marks))
    assert not any(map(selected, others))
    assert selections([]) == []


def test_all_flows() -> None:
    """Whatever their marks: those of former policies, too."""
    assert selections([5], every=True) == [(0, 0)]
