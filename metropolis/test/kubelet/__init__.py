# SPDX-License-Identifier: Apache-2.0
"""Pods on a node, by the calls that a kubelet makes, in its order.

    a file of YAML
      document      values with their lines and paths; YAML's traps are refused
      manifest      a Pod as Kubernetes defines it, checked by its rules
      configs       what the runtime gets: sandbox, containers, DNS, /etc/hosts
      decide        which calls a pod needs now, from what the runtime lists
      kubelet       makes them, through metropolis.test.launch.cri
    expectations    what critest expects from a runtime's network

All but the last two are pure.

The kubelet's rules are those of `pkg/kubelet/kuberuntime` of Kubernetes 1.34.
It is a subset: no volumes, probes, resources, init containers or API server;
the pods are as static ones.

Why not a kubelet: no distribution that the devroot takes packages from has one
that speaks CRI v1.
"""
