# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' policy manifests, read into the model of policies. Pure.

    text --documents--> Document --network_policy-----------> Policy, Problems
                                  --cluster_network_policy--> Policy, Problems
                                  --namespace--------------> labels, Problems
         `------------------- convert.read: all of it -------------------'

Kubernetes' API server checks a manifest before anybody enforces it; here the
reader does, so everything that it would refuse is refused, and also what YAML
hides: unknown and repeated fields, numbers where strings are meant. A policy
that is refused still isolates its subjects: the mistake is visible, and opens
nothing.

Only this package needs PyYAML.
"""
