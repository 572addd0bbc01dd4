# SPDX-License-Identifier: Apache-2.0
"""Tests from the text of ClusterNetworkPolicy v1alpha2."""

from ipaddress import ip_network

import pytest

from metropolis.node.core.network.policy.kubernetes.convert import Read, read
from metropolis.node.core.network.policy.model import (
    Action,
    NamedPort,
    Networks,
    Operator,
    Policy,
    Ports,
    Protocol,
    Requirement,
    Rule,
    Tier,
    Workloads,
)

HEAD = (
    "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n"
    "metadata: {name: p}\n"
)
SUBJECT = "{namespaces: {matchLabels: {a: b}}}"
SELECTED = Workloads((Requirement("a", Operator.IN, ("b",)),))


def label(key: str, value: str) -> Requirement:
    return Requirement(key, Operator.IN, (value,))


def parse(text: str) -> Read:
    return read(HEAD + text, "f.yaml")


def spec(rules: str = "", subject: str = SUBJECT) -> str:
    return f"spec: {{tier: Admin, priority: 5, subject: {subject}{rules}}}"


def good(text: str) -> Policy:
    found = parse(text)
    assert [str(each) for each in found.problems] == []
    (policy,) = found.policies
    assert not policy.error
    return policy


def bad(text: str) -> tuple[Policy, list[str]]:
    found = parse(text)
    (policy,) = found.policies
    assert policy.error
    assert (policy.ingress, policy.egress) == ((), ())
    return policy, [str(each) for each in found.problems if not each.warning]


def test_all_of_it() -> None:
    policy = good(
        """
spec:
  tier: Baseline
  priority: 1000
  subject:
    pods:
      namespaceSelector: {matchLabels: {team: x}}
      podSelector: {matchLabels: {app: z}}
  ingress:
  - name: first
    action: Accept
    from:
    - namespaces: {}
    - pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: w}}}
    protocols:
    - tcp: {destinationPort: {number: 80}}
    - udp: {destinationPort: {range: {start: 1, end: 65535}}}
    - sctp: {destinationPort: {number: 1}}
    - destinationNamedPort: http
  - action: Pass
    from: [{namespaces: {}}]
  egress:
  - action: Deny
    to:
    - networks: [10.0.0.0/8, "fd00::/8"]
"""
    )
    assert policy == Policy(
        "p",
        Tier.BASELINE,
        Workloads((label("team", "x"),), (label("app", "z"),)),
        ingress=(
            Rule(
                (Workloads(), Workloads((), (label("app", "w"),))),
                (
                    Ports(Protocol.TCP, 80, 80),
                    Ports(Protocol.UDP, 1, 65535),
                    Ports(Protocol.SCTP, 1, 1),
                    NamedPort("http", None),
                ),
                Action.ACCEPT,
                "first",
            ),
            Rule((Workloads(),), None, Action.PASS),
        ),
        egress=(
            Rule(
                (Networks((ip_network("10.0.0.0/8"), ip_network("fd00::/8"))),), None, Action.DENY
            ),
        ),
        priority=1000,
    )


def test_the_smallest() -> None:
    assert good(spec()) == Policy("p", Tier.ADMIN, SELECTED, priority=5)


def test_no_namespace_selector_is_all_namespaces() -> None:
    policy = good(spec(subject="{pods: {podSelector: {matchLabels: {c: d}}}}"))
    assert policy.subject == Workloads((), (label("c", "d"),))


def test_25_rules() -> None:
    rules = ", ".join(["{action: Deny, from: [{namespaces: {}}]}"] * 25)
    assert len(good(spec(f", ingress: [{rules}]")).ingress) == 25


CLOSED = {
    "Accept": Rule((), (Ports(Protocol.TCP, 80, 80),), Action.ACCEPT, "r"),
    "Deny": Rule(None, None, Action.DENY, "r"),
    "Pass": Rule(None, None, Action.DENY, "r"),
}


@pytest.mark.parametrize("action", CLOSED)
@pytest.mark.parametrize(
    ("direction", "peer", "said"),
    [
        ("egress", "nodes: {}", "nodes: such peers are not supported"),
        ("egress", "services: [a]", "services: unknown field"),
        ("egress", "namespace: {}", 'namespace: unknown field; did you mean "namespaces"?'),
        ("ingress", "nodes: {}", "nodes: unknown field"),
        ("ingress", "networks: [10.0.0.0/8]", "networks: unknown field"),
    ],
)
def test_peers_that_cannot_be_done_close_the_rule(
    direction: str, peer: str, said: str, action: str
) -> None:
    where = "from" if direction == "ingress" else "to"
    found = parse(
        spec(
            f", {direction}: [{{name: r, action: {action},"
            f" {where}: [{{namespaces: {{}}}}, {{{peer}}}],"
            " protocols: [{tcp: {destinationPort: {number: 80}}}]}]"
        )
    )
    (policy,) = found.policies
    (problem,) = found.problems
    assert policy.error == ""
    assert policy.ingress + policy.egress == (CLOSED[action],)
    assert problem.warning
    assert problem.path.startswith(f"spec.{direction}[0].{where}[1].")
    assert said in str(problem)
    assert ("matches nothing" in problem.text) == (action == "Accept")


def test_domain_names() -> None:
    rule = ", egress: [{action: %s, to: [{domainNames: ['*.example.com', kubernetes.io]}]}]"
    found = parse(spec(rule.replace("%s", "Accept")))
    assert found.policies[0].egress == (Rule((), None, Action.ACCEPT),)
    assert [each.warning for each in found.problems] == [True]
    _, problems = bad(spec(rule.replace("%s", "Deny")))
    assert "domainNames are for Accept rules only" in problems[0]


def test_host_bits_of_networks() -> None:
    found = parse(spec(", egress: [{action: Deny, to: [{networks: [10.1.0.0/8]}]}]"))
    assert found.policies[0].egress[0].peers == (Networks((ip_network("10.0.0.0/8"),)),)
    assert [each.warning for each in found.problems] == [True]


def test_a_namespace_is_ignored_with_a_warning() -> None:
    found = read(HEAD.replace("name: p", "name: p, namespace: web") + spec(), "f.yaml")
    assert found.policies == (Policy("p", Tier.ADMIN, SELECTED, priority=5),)
    assert [(each.path, each.warning) for each in found.problems] == [("metadata.namespace", True)]


MANY = ", ".join(["{namespaces: {}}"] * 26)
RULES = ", ".join(["{action: Deny, to: [{namespaces: {}}]}"] * 26)
NETWORKS = ", ".join(f"10.{n}.0.0/16" for n in range(26))


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (f", egress: [{RULES}]", "spec.egress: 0 to 25 items are expected, and there are 26"),
        (", egress: [~]", "spec.egress[0]: a map is expected"),
        (", egress: [{to: [{namespaces: {}}]}]", "spec.egress[0].action: required"),
        (", egress: [{action: Allow, to: [{namespaces: {}}]}]", 'action: "Allow" is none of'),
        (", egress: [{action: Deny}]", "spec.egress[0].to: required"),
        (", egress: [{action: Deny, to: []}]", "spec.egress[0].to: 1 to 25 items"),
        (f", egress: [{{action: Deny, to: [{MANY}]}}]", "spec.egress[0].to: 1 to 25 items"),
        (", egress: [{action: Deny, to: [{}]}]", "spec.egress[0].to[0]: exactly one of"),
        (
            ", egress: [{action: Deny, to: [{namespaces: {}, networks: [10.0.0.0/8]}]}]",
            "spec.egress[0].to[0]: exactly one of",
        ),
        (", egress: [{action: Deny, from: [], to: [{namespaces: {}}]}]", ".from: unknown"),
        (", egress: [{action: Deny, to: [{pods: {}}]}]", "to[0].pods.podSelector: required"),
        (", egress: [{action: Deny, to: [{networks: []}]}]", "to[0].networks: 1 to 25"),
        (f", egress: [{{action: Deny, to: [{{networks: [{NETWORKS}]}}]}}]", "to[0].networks: 1 to"),
        (", egress: [{action: Deny, to: [{networks: [x]}]}]", "to[0].networks[0]: "),
        (
            ", egress: [{action: Deny, to: [{networks: [10.0.0.0/8, 10.0.0.0/8]}]}]",
            "to[0].networks[1]: the prefix is in the list already",
        ),
        (", egress: [{action: Accept, to: [{domainNames: [x_]}]}]", "to[0].domainNames[0]: "),
        (
            f", egress: [{{action: Deny, to: [{{namespaces: {{}}}}], name: {'n' * 101}}}]",
            "spec.egress[0].name: more than 100",
        ),
    ],
)  # fmt: skip
def test_rules_that_are_refused(rules: str, said: str) -> None:
    policy, problems = bad(spec(rules))
    assert [said in each for each in problems] == [True]
    assert policy.subject == SELECTED


@pytest.mark.parametrize(
    ("protocols", "said"),
    [
        ("[]", "protocols: 1 to 25 items"),
        ("[{}]", "protocols[0]: exactly one of tcp, udp, sctp, destinationNamedPort"),
        ("[{tcp: ~}]", "protocols[0]: exactly one of"),
        ("[{tcp: {}}]", "protocols[0].tcp.destinationPort: required"),
        ("[{tcp: {destinationPort: {}}}]", "tcp.destinationPort: exactly one of number, range"),
        ("[{tcp: {destinationPort: 80}}]", "tcp.destinationPort: a map is expected"),
        ("[{tcp: {destinationPort: {number: 0}}}]", "destinationPort.number: 0 is not within 1"),
        ("[{tcp: {destinationPort: {number: '80'}}}]", "number: a decimal number"),
        ("[{tcp: {destinationPort: {range: {start: 5, end: 5}}}}]", "range: start has to be less"),
        ("[{tcp: {destinationPort: {range: {start: 5}}}}]", "range.end: required"),
        ("[{tcp: {destinationPort: {range: {start: 5, end: 65536}}}}]", "range.end: 65536"),
        ("[{TCP: {destinationPort: {number: 1}}}]", 'TCP: unknown field; did you mean "tcp"?'),
        ("[{destinationNamedPort: '80'}]", "destinationNamedPort: "),
        ("[{destinationNamedPort: ''}]", "destinationNamedPort: "),
        (
            "[{udp: {destinationPort: {number: 1}}, tcp: {destinationPort: {number: 1}}}]",
            "protocols[0]: exactly one of",
        ),
    ],
)
def test_protocols_that_are_refused(protocols: str, said: str) -> None:
    rule = f"{{action: Accept, from: [{{namespaces: {{}}}}], protocols: {protocols}}}"
    _, problems = bad(spec(f", ingress: [{rule}]"))
    assert [said in each for each in problems] == [True]


@pytest.mark.parametrize("peer", ["networks: [10.0.0.0/8]", "nodes: {}", "domainNames: [a.b]"])
def test_named_ports_of_peers_that_have_none(peer: str) -> None:
    rule = f"{{action: Accept, to: [{{{peer}}}], protocols: [{{destinationNamedPort: a}}]}}"
    _, problems = bad(spec(f", egress: [{rule}]"))
    assert ["egress[0].protocols: destinationNamedPort cannot" in each for each in problems] == [
        True
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{{priority: 5, subject: {SUBJECT}}}", "spec.tier: required"),
        (f"{{tier: admin, priority: 5, subject: {SUBJECT}}}", 'did you mean "Admin"?'),
        (f"{{tier: NetworkPolicy, priority: 5, subject: {SUBJECT}}}", "spec.tier: "),
        (f"{{tier: Admin, subject: {SUBJECT}}}", "spec.priority: required"),
        (f"{{tier: Admin, priority: -1, subject: {SUBJECT}}}", "spec.priority: -1 is not within 0"),
        (f"{{tier: Admin, priority: 1001, subject: {SUBJECT}}}", "spec.priority: 1001"),
        (f"{{tier: Admin, priority: 1.0, subject: {SUBJECT}}}", "spec.priority: a decimal"),
        (f"{{tier: Admin, priority: 5, subject: {SUBJECT}, rules: []}}", "spec.rules: unknown"),
    ],
)
def test_specs_that_are_refused(text: str, said: str) -> None:
    policy, problems = bad(f"spec: {text}")
    assert [said in each for each in problems] == [True]
    assert policy.subject == SELECTED
    assert policy.tier is Tier.ADMIN


@pytest.mark.parametrize(
    "subject",
    [
        "~",
        "{}",
        "[]",
        "{namespaces: {}, pods: {podSelector: {}}}",
        "{namespaces: {matchLabels: {a: 1}}}",
        "{namespaces: {matchLabels: {a: b}, x: 1}}",
        "{namespaces: {matchLabels: {a: b}}, nodes: {}}",
        "{pods: {namespaceSelector: {matchLabels: {a: b}}}}",
        f"{SUBJECT}, subject: {{namespaces: {{}}}}",
    ],
)
def test_a_subject_that_cannot_be_read_is_every_workload(subject: str) -> None:
    policy, problems = bad(spec(subject=subject))
    assert policy.subject == Workloads()
    assert any(
        "spec.subject: cannot be read: every workload is isolated" in each for each in problems
    )


@pytest.mark.parametrize("text", ["", "spec: ~", "spec: []", "specs: {}", spec() + "\n" + spec()])
def test_a_spec_that_cannot_be_read_isolates_every_workload(text: str) -> None:
    policy, problems = bad(text)
    assert policy.subject == Workloads()
    assert any("every workload is isolated" in each for each in problems)
