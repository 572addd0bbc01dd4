# SPDX-License-Identifier: Apache-2.0
"""veth beside netkit: what each pair costs a pod, and what each can do.

    ./bazelw run //metropolis/test/bench/links [-- --json] [-- --instructions]

One machine is booted. In it pods are attached by veth, by netkit in L2 mode and
by netkit in L3 mode, with the messages of our datapath; the kinds take turns.
The command says what is measured and what the figures do not show.

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
