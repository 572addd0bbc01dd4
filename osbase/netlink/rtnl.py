# SPDX-License-Identifier: Apache-2.0
"""The messages of rtnetlink under one name, for modules that use many of them.

Others import from address, altnames, ifla, link, route and veth.
"""

# ruff: noqa: F403
from osbase.ip import AF_INET as AF_INET
from osbase.ip import AF_INET6 as AF_INET6
from osbase.ip import AF_UNSPEC as AF_UNSPEC
from osbase.ip import IPAddress as IPAddress
from osbase.ip import IPNetwork as IPNetwork
from osbase.ip import family_of as family_of
from osbase.ip import link_local as link_local
from osbase.netlink.address import *
from osbase.netlink.altnames import *
from osbase.netlink.ifla import *
from osbase.netlink.link import *
from osbase.netlink.route import *
from osbase.netlink.veth import *
