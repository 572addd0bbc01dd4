# SPDX-License-Identifier: Apache-2.0
"""Restores what others change in the node's network, and logs it.

    ward        the interface of something that is guarded
    wards       those of the node as a whole
    watch       the kernel's events, filtered
    fights      when to stop restoring a thing          pure
    reconciler  calls wards: events, a clock, logs, counts

Firewalls, kube-proxy, sysctl files, network scripts and people change settings,
rules, routes and addresses, of one link or of all. The wards know which of
these a pod's traffic depends on:

    ward       looks at                                     every, and at events
    rules      nftables tables of ours, by digest           5 s   RULES
    sysctls    sysctls.NODE                                 1 s   SETTING
    host       lo, 127.0.0.1, ::1, the first hop; the       5 s   ADDRESS LINK
               kernel's own routing policy rules                  POLICY
    uplink     addresses, routes, settings of the uplink    20 s  all but RULES
    workloads  links, routes and settings of attachments    20 s  all but RULES
    overlay    link, key, peers, addresses, routes          20 s  all but RULES

Limits: foreign routing policy rules, routes and rules with a better priority
stay; so do foreign filters, which Status notes (`wards.Foreign`), and queueing
disciplines. The clock makes up for lost events.

Why not restore at each event: the event says what changed, not what is right,
and the state may have changed again by the time it is handled.
"""
