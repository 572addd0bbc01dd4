# SPDX-License-Identifier: Apache-2.0
"""A DHCPv4 client (RFC 2131, 2132, 3396, 3442, 6842): gets and keeps a lease.

    packet    messages and their IP/UDP frames                  pure
    lease     the contents of an acknowledgement, checked       pure
    machine   the client's states, with time passed in          pure
    clock     the time of leases, also while the machine is suspended
    client    packet socket and clock around the machine

The client reports the lease; its caller adds the address to the link and
removes it. The client uses a packet socket, so it needs no address to get one.
It stores nothing: after a restart it asks for the address that is still on the
link (INIT-REBOOT).

Not done: DHCPDECLINE after probing by ARP (it costs seconds at every boot; the
server probes, RFC 2131, section 2.2), DHCPRELEASE (a node that restarts wants
its address back), DHCPINFORM, authentication, RFC 4361 client identifiers.

Why not pyroute2.dhcp (0.9.7): one reply without a message type ends its
receiving task with an unnoticed KeyError, and the lease then expires (912 of
3,000 random packets did so). It matches replies by transaction only, its
retransmissions are not the RFC's, and importing it takes 176 ms.
"""

from __future__ import annotations

from osbase.net.dhcp4 import clock
from osbase.net.dhcp4.client import Client
from osbase.net.dhcp4.lease import Lease

__all__ = ["Client", "Lease", "clock"]
