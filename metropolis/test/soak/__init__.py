# SPDX-License-Identifier: Apache-2.0
"""Soak: random churn against the workload service, and what is left at the end.

    ./bazelw run //metropolis/test/soak -- --minutes 15 --json

    driver ── user, mount and network namespace of its own
      ├── host "killed"   netns, service: SIGKILL or restart every few seconds
      ├── host "steady"   netns, service: lives through all of it, is measured
      └── some hundred pods a host: network namespaces, more than the pool has
          addresses, bind-mounted as container runtimes do

`world` makes these, `churn` is what the threads do to them and what must hold
at every stop, `belief` what a caller may believe after an answer, `census`
counts what is there, `soak` is the program. `turnover` is an engine without a
kernel, for what only shows after a million attachments.

Two hosts, since a service that is killed every few seconds cannot show that it
does not grow, and one that lives cannot show that it survives kills.

Limits: it checks the service's promises on links, addresses, routes and rules;
that packets flow is service_test's matter, and the node's e2e tests'.
"""
