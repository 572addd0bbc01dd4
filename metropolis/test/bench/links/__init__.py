# SPDX-License-Identifier: Apache-2.0
"""veth beside netkit: the cost of each pair for a pod, and its features.

    ./bazelw run //metropolis/test/bench/links [-- --json] [-- --instructions]

In one machine pods are attached by veth, by netkit in L2 mode and by netkit in
L3 mode, with the messages of our datapath; the kinds alternate. The command's
docstring has the figures and their limits.

    links                           the command
      │ a plan, as JSON             (common.vm boots the machine)
    guest                           the program in the machine
      ├─ messages                   netlink messages of an attach       pure
      ├─ pods                       namespaces, and attaching them
      ├─ traffic                    netperf from pod to pod
      └─ abilities                  what each kind can do
      │ samples, as JSON
    report                          figures; table and JSON             pure

    model                           the plan and the samples            pure
"""
