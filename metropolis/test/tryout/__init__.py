# SPDX-License-Identifier: Apache-2.0
"""Try the network service without a virtual machine, in a few seconds.

    ./bazelw run //metropolis:try               two workloads, over gRPC
    ./bazelw run //metropolis:try -- --cni      by the CNI exec shim
    ./bazelw run //metropolis:try -- --stay     then a shell there

    main     the command: the steps, what is printed
    place    namespaces, node core in them, commands there
    attach   one workload, attached over gRPC or by the shim

It runs node core itself, in new user, mount and network namespaces: nothing
outside of them changes, nothing remains after any end, and it needs no
privileges. There is no uplink, so workloads reach the node and each other.

Why not `//metropolis:launch`: that is the real thing, with containerd and its
pods, and takes minutes without KVM.
"""
