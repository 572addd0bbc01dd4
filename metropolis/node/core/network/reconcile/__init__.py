# SPDX-License-Identifier: Apache-2.0
"""Puts back what others change of the node's network, and says so.

    ward        what is watched: one interface
    wards       those of the node as a whole
    watch       what the kernel says of changes: filtered events
    fights      when to stop putting a thing back       pure
    reconciler  calls wards: events, a clock, logs, counts

Firewalls, kube-proxy, sysctl files, network scripts and people change settings,
rules, routes and addresses, of one link or of all. What a pod's traffic depends
on is known to its wards:

    ward       looks at                                     every, and at events
    rules      nftables tables of ours, by digest           5 s   RULES
    sysctls    sysctls.NODE                                 1 s   SETTING
    host       lo, 127.0.0.1, ::1, the first hop; the       5 s   ADDRESS LINK
               kernel's own routing policy rules                  POLICY
    uplink     addresses, routes, settings of the uplink    20 s  all but RULES
    workloads  links, routes and settings of attachments    20 s  all but RULES
    overlay    link, key, peers, addresses, routes          20 s  all but RULES

Limits: a routing policy rule, route or rule of others that is better than ours
stays; so do filters of others, which are noted (`wards.Foreign`), and queueing
disciplines. Events lost are made good by the clock.

Why not put back at each event: the event says what changed, not what is right,
and one that comes while the last is handled would be judged by what is no more.
"""
