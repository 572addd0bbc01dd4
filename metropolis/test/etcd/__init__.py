# SPDX-License-Identifier: Apache-2.0
"""A real etcd for tests, with certificates, that can be stopped, killed and
restored from a snapshot.

    async with Etcd(tmp_path, addresses=["127.0.0.1"]) as etcd:
        etcd.endpoint, etcd.client          "HOST:PORT", Credentials

It is Debian's etcd from the devroot, a child process that ends with the test.
It does not sync its files, so `kill` is like the death of the process, never
like that of the machine.
"""

from metropolis.test.etcd.certificates import Authority, Credentials
from metropolis.test.etcd.server import Etcd, EtcdFailed

__all__ = ["Authority", "Credentials", "Etcd", "EtcdFailed"]
