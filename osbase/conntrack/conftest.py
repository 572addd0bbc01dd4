# SPDX-License-Identifier: Apache-2.0
"""What the tests of a real kernel's table share."""

import subprocess
from collections.abc import Iterator

import pytest

from osbase import conntrack
from osbase.nftables import Nftables


@pytest.fixture
def tracked() -> Iterator[None]:
    """Set loopback up; a rule makes the kernel track flows."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in ("127.0.0.2/8", "fd00::1/128", "fd00::2/128"):
        subprocess.run(["ip", "address", "replace", address, "dev", "lo"], check=True)
    with Nftables() as nft:
        nft.apply("""
            table inet t { chain c {
                type filter hook output priority 0; ct state new accept
            }; }
        """)
        yield
        nft.apply("delete table inet t")
    conntrack.flush()
