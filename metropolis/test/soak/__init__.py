# SPDX-License-Identifier: Apache-2.0
"""Soak: random churn on the workload service, and a search for leaks.

    ./bazelw run //metropolis/test/soak -- --minutes 15 --json

    driver ── own user, mount and network namespace
      ├── host "killed"   netns, service: SIGKILL or restart every few seconds
      ├── host "steady"   netns, service: never restarted, measured
      └── some hundred pods a host: network namespaces, more than the pool has
          addresses, bind-mounted as container runtimes do

`world` makes these, `churn` has the threads' operations and the invariants at
every pause, `belief` models what a caller may conclude from an answer, `census`
counts kernel objects, `soak` is the program. `turnover` runs an engine without
a kernel, for leaks that only show after a million attachments.

There are two hosts, since a service that is killed every few seconds cannot
show that it does not grow, and one that lives cannot show that it survives
kills.

Limits: it checks the service's promises on links, addresses, routes and rules;
service_test and the node's e2e tests check that packets flow.
"""
