# SPDX-License-Identifier: Apache-2.0
"""Wire compatibility of the workload network API, with others' stubs.

base.proto has only what every implementation of the API has; it never changes.
future.proto adds fields, all of numbers that nobody uses. Both have the full
names of workload.proto, and a process can hold one definition of a name, so
each user of their stubs is a process of its own: client.py, future_server.py.

What a change of workload.proto breaks without being seen on the wire (bytes for
string, say) is found by a comparison of the descriptors.
"""
