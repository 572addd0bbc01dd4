# SPDX-License-Identifier: Apache-2.0
"""The oracle against truth tables by hand, and laws that the API implies.

A table has a row for each source and a column for each destination, in this
order: x/a, x/b, y/a, y/b, outside. `+`: allowed, `-`: denied, `*`: not asked.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from random import Random
from textwrap import dedent
from typing import Any, Final

import pytest
import yaml

from metropolis.test.policy import oracle, worlds
from metropolis.test.policy.fields import Invalid, Manifest
from metropolis.test.policy.oracle import IP, Cluster, Node, Pod

OUTSIDE: Final[dict[int, IP]] = {
    4: ip_address("203.0.113.9"),
    6: ip_address("2001:db8::9"),
}
NAMESPACES: Final = {"x": {"team": "red"}, "y": {"team": "blue", "env": "prod"}}


def pod(name: str, number: str, labels: dict[str, str], **ports: tuple[str, int]) -> Pod:
    namespace, name = name.split("/")
    ips = (ip_address(f"10.0.{number}"), ip_address(f"fd00::{number.replace('.', ':')}"))
    return Pod(namespace, name, labels, ips, ports)


XA: Final = pod("x/a", "1.1", {"pod": "a", "tier": "web"}, web=("TCP", 80))
XB: Final = pod("x/b", "1.2", {"pod": "b", "tier": "db"}, web=("TCP", 81))
YA: Final = pod("y/a", "2.1", {"pod": "a"}, web=("UDP", 80))
YB: Final = pod("y/b", "2.2", {"pod": "b", "tier": "web"})
PODS: Final = (XA, XB, YA, YB)

OPEN: Final = "+++++ +++++ +++++ +++++ ++++*"
X_IN: Final = "+-+++ -++++ --+++ --+++ --++*"  # x takes from itself only
X_OUT: Final = "+---- -+--- +++++ +++++ ++++*"  # x sends to itself only
X_BOTH: Final = "+---- -+--- --+++ --+++ --++*"
FROM_X: Final = "+++++ +++++ --+++ --+++ --++*"  # x takes from x
FROM_Y: Final = "+-+++ -++++ +++++ +++++ --++*"
FROM_PODS: Final = "+++++ +++++ +++++ +++++ --++*"
NOT_FROM_Y: Final = "+++++ +++++ --+++ --+++ ++++*"
NOT_FROM_PODS: Final = "+-+++ -++++ --+++ --+++ ++++*"
ONLY_Y_OF_PODS: Final = "+-+++ -++++ +++++ +++++ ++++*"


def policies(text: str) -> list[dict[str, Any]]:
    """Return manifests. `np: NAME`, `cnp: NAME` stand for all above the spec;
    a NetworkPolicy is in namespace x unless it says another.
    """
    return [_manifest(spec) for spec in yaml.safe_load_all(dedent(text))]


def _manifest(spec: dict[str, Any]) -> dict[str, Any]:
    if "np" in spec:
        kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"}
        metadata = {"name": spec.pop("np"), "namespace": spec.pop("namespace", "x")}
        return {**kind, "metadata": metadata, "spec": spec}
    version = "policy.networking.k8s.io/v1alpha2"
    kind = {"apiVersion": version, "kind": "ClusterNetworkPolicy"}
    filled = {"priority": 10, "subject": {"namespaces": _of_team("red")}, **spec}
    return {**kind, "metadata": {"name": filled.pop("cnp")}, "spec": filled}


def _of_team(team: str) -> dict[str, Any]:
    return {"matchLabels": {"team": team}}


def table(cluster: Cluster, probe: str) -> str:
    """Return the table of a probe, `tcp80` or `tcp80v6`."""
    probe, _, version = probe.partition("v")
    family = int(version or 4)
    protocol, port = probe.rstrip("0123456789"), int(probe.lstrip("tcpuds"))
    ends = [*PODS, OUTSIDE[family]]
    rows = []
    for source in ends:
        row = ""
        for destination in ends:
            if source is destination is OUTSIDE[family]:
                row += "*"
            else:
                asked = (cluster, source, destination, protocol, port, family)
                row += "+" if oracle.allowed(*asked) else "-"
        rows.append(row)
    return " ".join(rows)


TABLES: Final[list[tuple[str, str, dict[str, str]]]] = [
    # ---- Isolation, and its directions
    (
        "deny all ingress",
        "{np: p, podSelector: {}}",
        {"tcp80": X_IN, "udp81": X_IN, "sctp80v6": X_IN},
    ),
    ("no selector selects all", "{np: p, policyTypes: [Ingress]}", {"tcp80": X_IN}),
    ("null is absent", "{np: p, podSelector: null, ingress: null}", {"tcp80": X_IN}),
    ("ingress: []", "{np: p, podSelector: {}, ingress: []}", {"tcp80": X_IN}),
    ("deny all egress", "{np: p, podSelector: {}, policyTypes: [Egress]}", {"tcp80": X_OUT}),
    ("deny both", "{np: p, podSelector: {}, policyTypes: [Ingress, Egress]}", {"tcp80": X_BOTH}),
    ("allow all ingress", "{np: p, podSelector: {}, ingress: [{}]}", {"tcp80": OPEN}),
    (
        "an egress rule makes both types, so ingress is denied",
        "{np: p, podSelector: {}, egress: [{}]}",
        {"tcp80": X_IN},
    ),
    ("egress: [] does not", "{np: p, podSelector: {}, egress: []}", {"tcp80": X_IN}),
    (
        "a direction that is not a type has no effect",
        "{np: p, podSelector: {}, policyTypes: [Egress], ingress: [{from: []}]}",
        {"tcp80": X_OUT},
    ),
    (
        "nor has egress under Ingress",
        "{np: p, podSelector: {}, policyTypes: [Ingress], egress: [{}]}",
        {"tcp80": X_IN},
    ),
    ("types []: as absent", "{np: p, policyTypes: [], egress: [{}]}", {"tcp80": X_IN}),
    ("from: []", "{np: p, podSelector: {}, ingress: [{from: []}]}", {"tcp80": OPEN}),
    ("from: null", "{np: p, podSelector: {}, ingress: [{from: null}]}", {"tcp80": OPEN}),
    ("ports: []", "{np: p, ingress: [{ports: [], from: [{podSelector: {}}]}]}", {"tcp80": FROM_X}),
    ("of another namespace", "{np: p, namespace: elsewhere, podSelector: {}}", {"tcp80": OPEN}),
    # ---- Targets
    (
        "one pod",
        "{np: p, podSelector: {matchLabels: {pod: a}}}",
        {"tcp80": "+++++ -++++ -++++ -++++ -+++*"},
    ),
    (
        "In",
        "{np: p, podSelector: {matchExpressions: [{key: tier, operator: In, values: [web, z]}]}}",
        {"tcp80": "+++++ -++++ -++++ -++++ -+++*"},
    ),
    (
        "NotIn",
        "{np: p, podSelector: {matchExpressions: [{key: tier, operator: NotIn, values: [web]}]}}",
        {"tcp80": "+-+++ +++++ +-+++ +-+++ +-++*"},
    ),
    (
        "NotIn selects a pod without the label",
        "{np: p, namespace: y, podSelector: "
        "{matchExpressions: [{key: tier, operator: NotIn, values: [web]}]}}",
        {"tcp80": "++-++ ++-++ +++++ ++-++ ++-+*"},
    ),
    (
        "Exists and a label: both",
        "{np: p, namespace: y, podSelector: {matchLabels: {pod: a},"
        " matchExpressions: [{key: tier, operator: Exists}]}}",
        {"tcp80": OPEN},
    ),
    (
        "DoesNotExist",
        "{np: p, namespace: y, podSelector:"
        " {matchExpressions: [{key: tier, operator: DoesNotExist}]}}",
        {"tcp80": "++-++ ++-++ +++++ ++-++ ++-+*"},
    ),
    # ---- Peers by selectors
    (
        "pods: of the policy's namespace",
        "{np: p, ingress: [{from: [{podSelector: {}}]}]}",
        {"tcp80": FROM_X, "tcp80v6": FROM_X},
    ),
    (
        "a namespace",
        "{np: p, ingress: [{from: [{namespaceSelector: {matchLabels: {env: prod}}}]}]}",
        {"tcp80": FROM_Y},
    ),
    (
        "a namespace by its name",
        "{np: p, ingress: [{from: [{namespaceSelector:"
        " {matchLabels: {kubernetes.io/metadata.name: y}}}]}]}",
        {"tcp80": FROM_Y},
    ),
    (
        "all namespaces, not outside",
        "{np: p, ingress: [{from: [{namespaceSelector: {}}]}]}",
        {"tcp80": FROM_PODS},
    ),
    (
        "AND: one item with both selectors",
        "{np: p, ingress: [{from: [{namespaceSelector: {matchLabels: {env: prod}},"
        " podSelector: {matchLabels: {pod: a}}}]}]}",
        {"tcp80": "+-+++ -++++ +++++ --+++ --++*"},
    ),
    (
        "OR: two items",
        "{np: p, ingress: [{from: [{namespaceSelector: {matchLabels: {env: prod}}},"
        " {podSelector: {matchLabels: {pod: a}}}]}]}",
        {"tcp80": "+++++ -++++ +++++ +++++ --++*"},
    ),
    (
        "two labels: both",
        "{np: p, ingress: [{from: [{namespaceSelector: {},"
        " podSelector: {matchLabels: {pod: b, tier: web}}}]}]}",
        {"tcp80": "+-+++ -++++ --+++ +++++ --++*"},
    ),
    (
        "namespace NotIn, without the label",
        "{np: p, ingress: [{from: [{namespaceSelector:"
        " {matchExpressions: [{key: env, operator: NotIn, values: [prod]}]}}]}]}",
        {"tcp80": FROM_X},
    ),
    (
        "namespace Exists",
        "{np: p, ingress: [{from: [{namespaceSelector:"
        " {matchExpressions: [{key: env, operator: Exists}]}}]}]}",
        {"tcp80": FROM_Y},
    ),
    (
        "expressions: all of them",
        "{np: p, ingress: [{from: [{namespaceSelector: {matchExpressions:"
        " [{key: env, operator: Exists}, {key: team, operator: In, values: [red]}]}}]}]}",
        {"tcp80": X_IN},
    ),
    # ---- Peers by address
    (
        "all of IPv4, and so nothing of IPv6",
        "{np: p, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}",
        {"tcp80": OPEN, "tcp80v6": X_IN},
    ),
    (
        "a block has pods, too",
        "{np: p, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}",
        {"tcp80": FROM_PODS, "tcp80v6": X_IN},
    ),
    (
        "except",
        "{np: p, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.2.0/24]}}]}]}",
        {"tcp80": FROM_X},
    ),
    (
        "two excepts of IPv6",
        '{np: p, ingress: [{from: [{ipBlock: {cidr: "::/0",'
        ' except: ["fd00::2:0/112", "2001:db8::9/128"]}}]}]}',
        {"tcp80": X_IN, "tcp80v6": FROM_X},
    ),
    (
        "one address",
        "{np: p, ingress: [{from: [{ipBlock: {cidr: 10.0.2.1/32}}]}]}",
        {"tcp80": "+-+++ -++++ +++++ --+++ --++*"},
    ),
    (
        "bits of a host do not count",
        "{np: p, ingress: [{from: [{ipBlock: {cidr: 10.0.2.77/24}}]}]}",
        {"tcp80": FROM_Y},
    ),
    (
        "what is excepted may be allowed by another peer",
        "{np: p, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.2.0/24]}},"
        " {namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}]}]}",
        {"tcp80": "+++++ +++++ --+++ +++++ ++++*"},
    ),
    (
        "egress to a block",
        "{np: p, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}",
        {"tcp80": "+---+ -+--+ +++++ +++++ ++++*", "tcp80v6": X_OUT},
    ),
    # ---- Egress, and both ends
    (
        "egress to a namespace",
        "{np: p, policyTypes: [Egress],"
        " egress: [{to: [{namespaceSelector: {matchLabels: {env: prod}}}]}]}",
        {"tcp80": "+-++- -+++- +++++ +++++ ++++*"},
    ),
    (
        "both ends must allow",
        """
        {np: out, policyTypes: [Egress],
         egress: [{to: [{namespaceSelector: {matchLabels: {env: prod}}}]}]}
        ---
        {np: in, namespace: y,
         ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: a}}}]}]}
        """,
        {"tcp80": "+-++- -+--- +++++ ++-++ ++--*"},
    ),
    # ---- Ports
    (
        "a port",
        "{np: p, ingress: [{ports: [{protocol: TCP, port: 80}]}]}",
        {"tcp80": OPEN, "tcp81": X_IN, "udp80": X_IN, "sctp80": X_IN},
    ),
    (
        "without protocol: TCP",
        "{np: p, ingress: [{ports: [{port: 80}]}]}",
        {"tcp80": OPEN, "tcp80v6": OPEN, "udp80": X_IN, "sctp80": X_IN},
    ),
    (
        "without port: all of the protocol",
        "{np: p, ingress: [{ports: [{protocol: UDP}]}]}",
        {"udp80": OPEN, "udp65535": OPEN, "tcp80": X_IN},
    ),
    (
        "an empty port: all of TCP",
        "{np: p, ingress: [{ports: [{}]}]}",
        {"tcp9": OPEN, "udp9": X_IN},
    ),
    (
        "SCTP opens no TCP",
        "{np: p, ingress: [{ports: [{protocol: SCTP, port: 80}]}]}",
        {"sctp80": OPEN, "sctp81": X_IN, "tcp80": X_IN, "udp80": X_IN},
    ),
    (
        "endPort",
        "{np: p, ingress: [{ports: [{port: 80, endPort: 82}]}]}",
        {"tcp79": X_IN, "tcp80": OPEN, "tcp81": OPEN, "tcp82": OPEN, "tcp83": X_IN, "udp81": X_IN},
    ),
    (
        "endPort may be the port",
        "{np: p, ingress: [{ports: [{port: 81, endPort: 81}]}]}",
        {"tcp80": X_IN, "tcp81": OPEN, "tcp82": X_IN},
    ),
    (
        "two ports: either",
        "{np: p, ingress: [{ports: [{port: 80}, {protocol: UDP, port: 81}]}]}",
        {"tcp80": OPEN, "udp81": OPEN, "tcp81": X_IN, "udp80": X_IN},
    ),
    (
        "a name has another number on each pod",
        "{np: p, ingress: [{ports: [{port: web}]}]}",
        {
            "tcp80": "+-+++ +++++ +-+++ +-+++ +-++*",
            "tcp81": "+++++ -++++ -++++ -++++ -+++*",
            "udp80": X_IN,
        },
    ),
    (
        "a name in egress is the destination's",
        "{np: p, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}",
        {"tcp80": "+---- ++--- +++++ +++++ ++++*", "tcp81": "++--- -+--- +++++ +++++ ++++*"},
    ),
    (
        "a name of a port of UDP",
        "{np: p, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: web}]}]}",
        {"udp80": "+-+-- -++-- +++++ +++++ ++++*", "tcp80": X_OUT, "udp81": X_OUT},
    ),
    # ---- Rules and policies together
    (
        "port and peer must both match",
        "{np: p, ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}], ports: [{port: 80}]}]}",
        {"tcp80": "+++++ -++++ --+++ --+++ --++*", "tcp81": X_IN},
    ),
    (
        "rules do not lend each other their ports",
        "{np: p, ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}], ports: [{port: 80}]},"
        " {from: [{namespaceSelector: {matchLabels: {env: prod}}}], ports: [{port: 81}]}]}",
        {"tcp80": "+++++ -++++ --+++ --+++ --++*", "tcp81": FROM_Y},
    ),
    (
        "policies add up",
        """
        {np: deny, podSelector: {}}
        ---
        {np: allow, ingress: [{from: [{namespaceSelector: {matchLabels: {env: prod}}}]}]}
        ---
        {np: more, ingress: [{from: [{podSelector: {matchLabels: {pod: a}}}]}]}
        """,
        {"tcp80": "+++++ -++++ +++++ +++++ --++*"},
    ),
    # ---- Tiers
    (
        "Admin denies",
        "{cnp: p, tier: Admin, ingress: [{action: Deny, from:"
        " [{namespaces: {matchLabels: {env: prod}}}]}]}",
        {"tcp80": NOT_FROM_Y, "udp80v6": NOT_FROM_Y},
    ),
    (
        "Admin denies over a NetworkPolicy that allows",
        """
        {cnp: p, tier: Admin, ingress:
         [{action: Deny, from: [{namespaces: {matchLabels: {env: prod}}}]}]}
        ---
        {np: allow, ingress: [{}]}
        """,
        {"tcp80": NOT_FROM_Y},
    ),
    (
        "Admin accepts over a NetworkPolicy that denies",
        """
        {cnp: p, tier: Admin, ingress:
         [{action: Accept, from: [{namespaces: {matchLabels: {env: prod}}}]}]}
        ---
        {np: deny, podSelector: {}}
        """,
        {"tcp80": FROM_Y},
    ),
    (
        "rules in their order; Pass without a NetworkPolicy",
        "{cnp: p, tier: Admin, ingress: [{action: Pass, from:"
        " [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {pod: a}}}}]},"
        " {action: Deny, from: [{namespaces: {matchLabels: {env: prod}}}]}]}",
        {"tcp80": "+++++ +++++ +++++ --+++ ++++*"},
    ),
    (
        "Pass to a NetworkPolicy",
        """
        {cnp: p, tier: Admin, ingress:
         [{action: Pass, from: [{pods: {podSelector: {matchLabels: {pod: a}}}}]},
          {action: Accept, from: [{namespaces: {}}]}]}
        ---
        {np: deny, podSelector: {}}
        """,
        {"tcp80": "+-+++ +++++ --+++ +++++ --++*"},
    ),
    (
        "Pass to Baseline",
        """
        {cnp: p, tier: Admin, ingress:
         [{action: Pass, from: [{namespaces: {matchLabels: {env: prod}}}]},
          {action: Accept, from: [{namespaces: {}}]}]}
        ---
        {cnp: q, tier: Baseline, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
        """,
        {"tcp80": NOT_FROM_Y},
    ),
    (
        "Baseline denies pods; outside is no peer of ingress",
        "{cnp: p, tier: Baseline, ingress: [{action: Deny, from: [{namespaces: {}}]}]}",
        {"tcp80": NOT_FROM_PODS},
    ),
    (
        "a NetworkPolicy overrides Baseline",
        """
        {cnp: p, tier: Baseline, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
        ---
        {np: allow, ingress: [{from: [{namespaceSelector: {matchLabels: {env: prod}}}]}]}
        """,
        {"tcp80": FROM_Y},
    ),
    (
        "a NetworkPolicy is final: Baseline's Accept does not come after it",
        """
        {cnp: p, tier: Baseline, ingress: [{action: Accept, from: [{namespaces: {}}]}]}
        ---
        {np: deny, podSelector: {}}
        """,
        {"tcp80": X_IN},
    ),
    (
        "Baseline is for pods that no NetworkPolicy selects",
        """
        {cnp: p, tier: Baseline, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
        ---
        {np: allow, podSelector: {matchLabels: {pod: a}},
         ingress: [{from: [{namespaceSelector: {matchLabels: {env: prod}}}]}]}
        """,
        {"tcp80": "+-+++ -++++ +-+++ +-+++ -+++*"},
    ),
    (
        "a NetworkPolicy of ingress leaves egress to Baseline",
        """
        {cnp: p, tier: Baseline, egress: [{action: Deny, to: [{namespaces: {}}]}]}
        ---
        {np: allow, ingress: [{}]}
        """,
        {"tcp80": "+---+ -+--+ +++++ +++++ ++++*"},
    ),
    (
        "the smaller priority comes first",
        """
        {cnp: a, tier: Admin, priority: 20, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
        ---
        {cnp: b, tier: Admin, priority: 3, ingress:
         [{action: Accept, from: [{namespaces: {matchLabels: {env: prod}}}]}]}
        """,
        {"tcp80": ONLY_Y_OF_PODS},
    ),
    (
        "and hides the greater",
        """
        {cnp: a, tier: Admin, priority: 3, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
        ---
        {cnp: b, tier: Admin, priority: 20, ingress:
         [{action: Accept, from: [{namespaces: {matchLabels: {env: prod}}}]}]}
        """,
        {"tcp80": NOT_FROM_PODS},
    ),
    (
        "Pass skips later policies of the tier",
        """
        {cnp: a, tier: Admin, priority: 3, ingress:
         [{action: Pass, from: [{namespaces: {matchLabels: {env: prod}}}]}]}
        ---
        {cnp: b, tier: Admin, priority: 20, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
        """,
        {"tcp80": ONLY_Y_OF_PODS},
    ),
    (
        "Pass in Baseline: the default",
        "{cnp: p, tier: Baseline, ingress:"
        " [{action: Pass, from: [{namespaces: {matchLabels: {env: prod}}}]},"
        " {action: Deny, from: [{namespaces: {}}]}]}",
        {"tcp80": ONLY_Y_OF_PODS},
    ),
    (
        "Accept of egress does not bind the other end",
        """
        {cnp: p, tier: Admin, egress: [{action: Accept, to: [{namespaces: {}}]}]}
        ---
        {np: deny, namespace: y, podSelector: {}}
        """,
        {"tcp80": "++--+ ++--+ +++-+ ++-++ ++--*"},
    ),
    (
        "a subject of pods in all namespaces",
        "{cnp: p, tier: Admin, subject: {pods: {podSelector: {matchLabels: {pod: a}}}},"
        " ingress: [{action: Deny, from: [{namespaces: {}}]}]}",
        {"tcp80": "++-++ -+-++ -++++ -+-++ ++++*"},
    ),
    ("no rules, no effect", "{cnp: p, tier: Admin, subject: {namespaces: {}}}", {"tcp80": OPEN}),
    (
        "networks",
        "{cnp: p, tier: Admin, egress: [{action: Deny, to: [{networks: [203.0.113.0/24]}]}]}",
        {"tcp80": "++++- ++++- +++++ +++++ ++++*", "tcp80v6": OPEN},
    ),
    (
        "networks have pods, too",
        "{cnp: p, tier: Baseline,"
        ' egress: [{action: Deny, to: [{networks: [0.0.0.0/0, "fd00::/16"]}]}]}',
        {"tcp80": X_OUT, "tcp80v6": "+---+ -+--+ +++++ +++++ ++++*"},
    ),
    (
        "a number of TCP",
        "{cnp: p, tier: Admin, ingress: [{action: Deny,"
        " from: [{namespaces: {matchLabels: {env: prod}}}],"
        " protocols: [{tcp: {destinationPort: {number: 80}}}]}]}",
        {"tcp80": NOT_FROM_Y, "tcp81": OPEN, "udp80": OPEN, "sctp80": OPEN},
    ),
    (
        "a range of UDP, a number of SCTP",
        "{cnp: p, tier: Admin, ingress: [{action: Deny,"
        " from: [{namespaces: {matchLabels: {env: prod}}}],"
        " protocols: [{udp: {destinationPort: {range: {start: 80, end: 81}}}},"
        " {sctp: {destinationPort: {number: 9}}}]}]}",
        {
            "udp79": OPEN,
            "udp80": NOT_FROM_Y,
            "udp81": NOT_FROM_Y,
            "udp82": OPEN,
            "tcp80": OPEN,
            "sctp9": NOT_FROM_Y,
            "sctp80": OPEN,
        },
    ),
    (
        "a name is that of the destination's port, of any protocol",
        "{cnp: p, tier: Admin, egress: [{action: Deny, to: [{namespaces: {}}],"
        " protocols: [{destinationNamedPort: web}]}]}",
        {
            "tcp80": "+++++ -++++ +++++ +++++ ++++*",
            "tcp81": "+-+++ +++++ +++++ +++++ ++++*",
            "udp80": "++-++ ++-++ +++++ +++++ ++++*",
        },
    ),
    (
        "a name in ingress",
        "{cnp: p, tier: Admin, ingress: [{action: Deny, from: [{namespaces: {}}],"
        " protocols: [{destinationNamedPort: web}]}]}",
        {"tcp81": "+-+++ +++++ +-+++ +-+++ ++++*", "udp80": OPEN},
    ),
    (
        "an unknown peer in Deny: denies all",
        "{cnp: p, tier: Admin, ingress: [{action: Deny, from: [{}],"
        " protocols: [{tcp: {destinationPort: {number: 80}}}]}]}",
        {"tcp80": X_IN, "udp9": X_IN},
    ),
    (
        "in Pass, too",
        "{cnp: p, tier: Admin, egress: [{action: Pass, to: [{domainNames: [example.com]}]}]}",
        {"tcp80": X_OUT},
    ),
    (
        "in Accept: the rule matches nothing",
        """
        {cnp: p, tier: Admin, ingress: [{action: Accept, from: [{}, {namespaces: {}}]}]}
        ---
        {np: deny, podSelector: {}}
        """,
        {"tcp80": X_IN},
    ),
]


def test_without_policies_all_is_allowed() -> None:
    cluster = Cluster(NAMESPACES, PODS, ())
    for probe in ("tcp80", "udp81", "sctp80v6"):
        assert table(cluster, probe) == OPEN


@pytest.mark.parametrize(
    ("text", "expected"), [pytest.param(*one[1:], id=one[0]) for one in TABLES]
)
def test_table(text: str, expected: dict[str, str]) -> None:
    cluster = Cluster(NAMESPACES, PODS, policies(text))
    assert {probe: table(cluster, probe) for probe in expected} == expected
    back = Cluster(NAMESPACES, PODS, cluster.policies[::-1])
    assert {probe: table(back, probe) for probe in expected} == expected


# ---- Nodes, and pods of their network ---------------------------------------

HERE: Final = Node("here", {"zone": "one"}, (ip_address("192.0.2.1"), ip_address("2001:db8:2::1")))
THERE: Final = Node("there", {}, (ip_address("192.0.2.2"),))
HOSTED: Final = Pod("x", "h", {"pod": "a"}, HERE.ips, {}, host_network=True, node="here")
NODES: Final = Cluster(
    NAMESPACES,
    (replace(XA, node="here"), replace(YB, node="there"), HOSTED),
    (),
    (HERE, THERE),
)
DENY: Final = "{np: p, podSelector: {}, policyTypes: [Ingress, Egress]}"


def ask(text: str, source: Pod | IP, destination: Pod | IP) -> bool:
    cluster = replace(NODES, policies=policies(text))
    return oracle.allowed(cluster, source, destination, "TCP", 80, 4)


def test_a_node_reaches_its_own_pods_and_no_others() -> None:
    here, there = NODES.pods[0], NODES.nodes[1].ips[0]
    assert ask(DENY, HERE.ips[0], here)
    assert ask(DENY, HOSTED, here)
    assert not ask(DENY, there, here)
    deny_y = "{np: p, namespace: y, podSelector: {}}"
    assert not ask(deny_y, HERE.ips[0], NODES.pods[1])
    assert ask(deny_y, there, NODES.pods[1])


def test_a_pods_way_to_its_node_is_policed() -> None:
    assert ask("{np: p, podSelector: {}}", NODES.pods[0], HERE.ips[0])
    assert not ask(DENY, NODES.pods[0], HERE.ips[0])


def test_a_pod_of_the_hosts_network_is_no_subject_and_no_pod() -> None:
    other = NODES.pods[1]
    assert ask(DENY, HOSTED, other)
    assert ask(DENY, other, HOSTED)
    text = "{np: p, namespace: y, ingress: [{from: [{namespaceSelector: {}}%s]}]}"
    assert not ask(text % "", HOSTED, other)
    assert ask(text % ", {ipBlock: {cidr: 192.0.2.1/32}}", HOSTED, other)
    deny = (
        "{cnp: p, tier: Admin, subject: {namespaces: {}},"
        " %s: [{action: Deny, %s: [{namespaces: {}}]}]}"
    )
    assert ask(deny % ("egress", "to"), other, HOSTED)
    assert ask(deny % ("ingress", "from"), HOSTED, other)


def test_nodes_as_peers() -> None:
    text = (
        "{cnp: p, tier: Admin, egress: [{action: Deny, to: [{nodes: %s}]}],"
        " subject: {namespaces: {}}}"
    )
    pod = NODES.pods[1]
    one = text % "{matchLabels: {zone: one}}"
    assert [ask(one, pod, node.ips[0]) for node in NODES.nodes] == [False, True]
    assert not ask(one, pod, HOSTED)
    assert [ask(text % "{}", pod, node.ips[0]) for node in NODES.nodes] == [False, False]
    assert ask(text % "{}", pod, NODES.pods[0])


def test_a_pods_address_is_the_pod() -> None:
    assert not ask("{np: p, podSelector: {}}", YB, XA.ips[0])
    assert ask("{np: p, ingress: [{from: [{namespaceSelector: {}}]}]}", YB.ips[0], XA)


# ---- What is refused --------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "{np: p, ingres: []}",
        "{np: p, ingress: {}}",
        "{np: p, ingress: [{to: []}]}",
        "{np: p, policyTypes: [ingress]}",
        "{np: p, ingress: [{from: [{}]}]}",
        "{np: p, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}",
        "{np: p, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/8]}}]}]}",
        "{np: p, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: ['::/0']}}]}]}",
        "{np: p, ingress: [{from: [{ipBlock: {cidr: 10.0.0/8}}]}]}",
        "{np: p, ingress: [{ports: [{protocol: ICMP}]}]}",
        "{np: p, ingress: [{ports: [{endPort: 80}]}]}",
        "{np: p, ingress: [{ports: [{port: web, endPort: 80}]}]}",
        "{np: p, ingress: [{ports: [{port: 81, endPort: 80}]}]}",
        "{np: p, podSelector: {matchExpressions: [{key: pod, operator: Is, values: [a]}]}}",
        "{np: p, podSelector: {matchExpressions: [{key: pod, operator: In}]}}",
        "{np: p, podSelector: {matchExpressions: [{key: pod, operator: Exists, values: [a]}]}}",
        "{cnp: p, tier: NetworkPolicy}",
        "{cnp: p, tier: Admin, priority: 1001}",
        "{cnp: p, tier: Admin, subject: {}}",
        "{cnp: p, tier: Admin, subject: {pods: {namespaceSelector: {}}}}",
        "{cnp: p, tier: Admin, ingress: [{action: Allow, from: [{namespaces: {}}]}]}",
        "{cnp: p, tier: Admin, ingress: [{action: Deny, from: []}]}",
        "{cnp: p, tier: Admin, ingress: [{action: Deny, from: [{namespaces: {}}], ports: []}]}",
        "{cnp: p, tier: Admin, ingress: [{action: Deny, from: [{namespaces: {}}],"
        " protocols: [{tcp: {}}]}]}",
        "{cnp: p, tier: Admin, ingress: [{action: Deny, from: [{namespaces: {}}],"
        " protocols: [{tcp: {destinationPort: {range: {start: 80, end: 80}}}}]}]}",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(Invalid):
        table(Cluster(NAMESPACES, PODS, policies(text)), "tcp80")


def test_refuses_a_question_without_an_answer() -> None:
    cluster = Cluster(NAMESPACES, PODS, ())
    with pytest.raises(Invalid):
        oracle.allowed(cluster, replace(XA, ips=XA.ips[:1]), XB, "TCP", 80, 6)
    with pytest.raises(Invalid):
        oracle.allowed(cluster, OUTSIDE[6], XB, "TCP", 80, 4)
    with pytest.raises(Invalid):
        oracle.allowed(cluster, XA, XB, "ICMP", 80, 4)


def test_a_verdict_names_what_decides() -> None:
    text = """
    {cnp: gate, tier: Admin, egress: [{action: Accept, name: out, to: [{namespaces: {}}]}]}
    ---
    {np: closed, namespace: y, podSelector: {}}
    """
    verdict = oracle.explain(Cluster(NAMESPACES, PODS, policies(text)), XA, YA, "TCP", 80, 4)
    assert str(verdict).splitlines() == [
        "egress of x/a: allowed by Admin gate: egress[0] out",
        "ingress of y/a: denied by NetworkPolicy y/closed: isolated, and no rule matches",
    ]


# ---- Laws -------------------------------------------------------------------

SEEDS: Final = range(400)
ASKED: Final = 12


def answers(cluster: Cluster, seed: int, count: int = ASKED) -> list[bool]:
    """Return the answers to random questions, the same ones for each seed."""
    rng = Random(seed)
    base = worlds.random_cluster(seed)
    asked = [worlds.random_question(base, rng) for _ in range(count)]
    return [oracle.allowed(cluster, *question) for question in asked]


def test_worlds_have_mixed_verdicts() -> None:
    clusters = [worlds.random_cluster(seed) for seed in SEEDS]
    found = [answer for seed, one in enumerate(clusters) for answer in answers(one, seed)]
    assert 0.3 < sum(found) / len(found) < 0.7
    deciding = {
        (reason.tier, reason.allowed)
        for seed, one in enumerate(clusters)
        for reason in oracle.explain(one, *worlds.random_question(one, Random(seed))).reasons
    }
    tiers = ("Admin", "NetworkPolicy", "Baseline")
    assert deciding >= {(tier, allowed) for tier in tiers for allowed in (True, False)}


def test_a_seed_is_a_world() -> None:
    assert worlds.random_cluster(7) == worlds.random_cluster(7)
    assert worlds.random_cluster(7) != worlds.random_cluster(8)


def test_the_order_of_policies_does_not_matter() -> None:
    for seed in SEEDS:
        cluster = worlds.random_cluster(seed)
        back = replace(cluster, policies=cluster.policies[::-1])
        assert answers(cluster, seed) == answers(back, seed), seed


def test_a_policy_that_isolates_nothing_new_removes_nothing() -> None:
    for seed in SEEDS:
        cluster, rng = worlds.random_cluster(seed), Random(seed)
        old = next(one for one in cluster.policies if one["kind"] == "NetworkPolicy")
        made = worlds.network_policy(cluster, rng, "made")
        types = old["spec"].get("policyTypes") or (
            ["Ingress", "Egress"] if old["spec"].get("egress") else ["Ingress"]
        )
        selector = old["spec"]["podSelector"]
        made["spec"] = {**made["spec"], "podSelector": selector, "policyTypes": types}
        made["metadata"] = {"name": "made", "namespace": old["metadata"]["namespace"]}
        more = replace(cluster, policies=[*cluster.policies, made])
        pairs = zip(answers(cluster, seed), answers(more, seed), strict=True)
        assert all(after or not before for before, after in pairs), seed


def test_a_policy_is_the_sum_of_its_rules() -> None:
    for seed in SEEDS:
        cluster = worlds.random_cluster(seed)
        split: list[Manifest] = []
        for policy in cluster.policies:
            split += _split(policy) if policy["kind"] == "NetworkPolicy" else [policy]
        parts = replace(cluster, policies=split)
        assert answers(cluster, seed) == answers(parts, seed), seed


def _split(policy: Manifest) -> list[dict[str, Any]]:
    """Return one policy without rules, and one for each rule."""
    spec = policy["spec"]
    types = spec.get("policyTypes") or (
        ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    )
    bare = {"podSelector": spec["podSelector"], "policyTypes": types}
    specs = [bare]
    for direction in ("ingress", "egress"):
        if direction.capitalize() in types:
            for rule in spec.get(direction, []):
                one = {"policyTypes": [direction.capitalize()], direction: [rule]}
                specs.append({**bare, **one})
    return [{**policy, "spec": one} for one in specs]


def test_only_the_order_of_priorities_matters() -> None:
    for seed in SEEDS:
        cluster = worlds.random_cluster(seed)
        ranks = sorted(one["spec"].get("priority", -1) for one in cluster.policies)
        moved = [
            {**one, "spec": {**one["spec"], "priority": ranks.index(one["spec"]["priority"])}}
            if one["kind"] == "ClusterNetworkPolicy"
            else one
            for one in cluster.policies
        ]
        assert answers(cluster, seed) == answers(replace(cluster, policies=moved), seed), seed


@pytest.mark.parametrize("action", ["Accept", "Deny"])
def test_the_first_admin_rule_is_final(action: str) -> None:
    text = (
        "{cnp: first, tier: Admin, priority: 0, subject: {namespaces: {}}, egress:"
        f" [{{action: {action}, to: [{{networks: [0.0.0.0/0, '::/0']}}]}}],"
        f" ingress: [{{action: {action}, from: [{{namespaces: {{}}}}]}}]}}"
    )
    for seed in SEEDS:
        cluster, rng = worlds.random_cluster(seed), Random(seed)
        # A name that sorts first: a random policy may have priority 0, too.
        first = {**policies(text)[0], "metadata": {"name": "a"}}
        cluster = replace(cluster, policies=[*cluster.policies, first])
        question = worlds.random_question(cluster, rng)
        if isinstance(question.source, Pod) and isinstance(question.destination, Pod):
            to_itself = question.source == question.destination
            assert oracle.allowed(cluster, *question) == (to_itself or action == "Accept"), seed


def test_baseline_changes_nothing_that_networkpolicies_decide() -> None:
    for seed in SEEDS:
        cluster, rng = worlds.random_cluster(seed, tiers=False), Random(seed)
        made = worlds.cluster_policy(cluster, rng, "made", 5)
        made["spec"]["tier"] = "Baseline"
        more = replace(cluster, policies=[*cluster.policies, made])
        question = worlds.random_question(cluster, rng)
        before, after = oracle.explain(cluster, *question), oracle.explain(more, *question)
        for old, new in zip(before.reasons, after.reasons, strict=True):
            assert old == new or old.text == "no policy decides", seed


def test_any_change_gives_a_cluster_that_can_be_asked() -> None:
    for seed in SEEDS:
        cluster, rng = worlds.random_cluster(seed, nodes=True), Random(seed)
        for _ in range(8):
            cluster = worlds.changed(cluster, rng)
            addresses = [ip for one in cluster.pods if not one.host_network for ip in one.ips]
            assert len(addresses) == len(set(addresses))
            verdict = oracle.explain(cluster, *worlds.random_question(cluster, rng))
            assert verdict.allowed == all(reason.allowed for reason in verdict.reasons)


def test_shrink_keeps_what_matters() -> None:
    def asked(seed: int) -> tuple[Cluster, worlds.Question]:
        cluster = worlds.random_cluster(seed)
        return cluster, worlds.random_question(cluster, Random(seed))

    def denied(one: Cluster) -> bool:
        return not oracle.allowed(one, *question)

    worlds_asked = (asked(seed) for seed in range(100))
    cluster, question = next(
        (one, question) for one, question in worlds_asked if not oracle.allowed(one, *question)
    )
    small = worlds.shrink(cluster, denied)
    assert denied(small)
    assert len(small.policies) == 1
