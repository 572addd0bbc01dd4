# SPDX-License-Identifier: Apache-2.0
"""Whole pods: our containerd beside stock containerds and their networks.

    ./bazelw run //metropolis/test/bench/runtimes [-- --json] [-- --quick]

One machine is booted from an image with all runtimes. They alternate at every
pod: ours, stock with CNI's bridge, stock with our shim, and pods in the host's
network as the floor. The command's docstring has the figures and their limits.

    runtimes                        the command; sizes of images
      │ a plan, as JSON             (common.vm boots the machine)
    guest                           the program in the machine
      ├─ config                     configurations of the containerds   pure
      ├─ pods                       a containerd and its pods
      ├─ metrics                    containerd's own times              pure
      └─ trace                      processes and programs that began   pure
      │ samples, as JSON
    report                          figures; table and JSON             pure

    model                           the plan and the samples            pure
"""
