# SPDX-License-Identifier: Apache-2.0
"""Tests from the text of NetworkPolicy v1 and the API server's checks."""

from ipaddress import ip_network

import pytest

from metropolis.node.core.network.policy.kubernetes.convert import Read, read
from metropolis.node.core.network.policy.model import (
    NAMESPACE_NAME,
    Direction,
    NamedPort,
    Networks,
    Operator,
    Policy,
    Ports,
    Protocol,
    Requirement,
    Rule,
    Selector,
    Tier,
    Workloads,
)

HEAD = (
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: web}\n"
)
BOTH = frozenset(Direction)
IN_WEB: Selector = (Requirement(NAMESPACE_NAME, Operator.IN, ("web",)),)


def label(key: str, *values: str) -> Requirement:
    return Requirement(key, Operator.IN, values)


def good(text: str, head: str = HEAD) -> Policy:
    found = read(head + text, "f.yaml")
    assert [str(each) for each in found.problems if not each.warning] == []
    (policy,) = found.policies
    assert not policy.error
    return policy


def bad(text: str, head: str = HEAD) -> tuple[Policy, list[str]]:
    found: Read = read(head + text, "f.yaml")
    (policy,) = found.policies
    assert policy.error
    assert (policy.ingress, policy.egress, policy.isolates) == ((), (), BOTH)
    assert all(problem.policy == policy.name for problem in found.problems)
    return policy, [str(each).removeprefix("f.yaml:") for each in found.problems]


def ingress(rule: str) -> Rule:
    (found,) = good(f"spec:\n  podSelector: {{}}\n  ingress:\n  - {rule}\n").ingress
    return found


def test_the_example_of_the_documentation() -> None:
    policy = good(
        """
spec:
  podSelector:
    matchLabels:
      role: db
  policyTypes:
  - Ingress
  - Egress
  ingress:
  - from:
    - ipBlock:
        cidr: 172.17.0.0/16
        except:
        - 172.17.1.0/24
    - namespaceSelector:
        matchLabels:
          project: myproject
    - podSelector:
        matchLabels:
          role: frontend
    ports:
    - protocol: TCP
      port: 6379
  egress:
  - to:
    - ipBlock:
        cidr: 10.0.0.0/24
    ports:
    - protocol: TCP
      port: 5978
"""
    )
    assert policy == Policy(
        "web/p",
        Tier.NAMESPACE,
        Workloads(IN_WEB, (label("role", "db"),)),
        ingress=(
            Rule(
                (
                    Networks((ip_network("172.17.0.0/16"),), (ip_network("172.17.1.0/24"),)),
                    Workloads((label("project", "myproject"),)),
                    Workloads(IN_WEB, (label("role", "frontend"),)),
                ),
                (Ports(Protocol.TCP, 6379, 6379),),
            ),
        ),
        egress=(
            Rule((Networks((ip_network("10.0.0.0/24"),)),), (Ports(Protocol.TCP, 5978, 5978),)),
        ),
        isolates=BOTH,
    )


def test_both_selectors_are_one_peer() -> None:
    rule = ingress("from: [{namespaceSelector: {}, podSelector: {matchLabels: {a: b}}}]")
    assert rule.peers == (Workloads((), (label("a", "b"),)),)


@pytest.mark.parametrize("text", ["{}", "from: []", "from: ~\n    ports: []", "ports: ~"])
def test_a_rule_without_peers_and_ports_allows_everything(text: str) -> None:
    assert ingress(text) == Rule(None, None)


@pytest.mark.parametrize(
    ("text", "isolates"),
    [
        ("{podSelector: {}}", {Direction.INGRESS}),
        ("{podSelector: {}, ingress: [], egress: []}", {Direction.INGRESS}),
        ("{podSelector: {}, policyTypes: []}", {Direction.INGRESS}),
        ("{podSelector: {}, egress: [{}]}", {Direction.INGRESS, Direction.EGRESS}),
        ("{podSelector: {}, policyTypes: [Egress]}", {Direction.EGRESS}),
        ("{podSelector: {}, policyTypes: [Egress], egress: []}", {Direction.EGRESS}),
        ("{podSelector: {}, policyTypes: [Ingress, Egress]}", set(Direction)),
    ],
)
def test_directions(text: str, isolates: set[Direction]) -> None:
    policy = good(f"spec: {text}")
    assert policy.isolates == isolates
    assert policy.ingress == ()
    assert policy.subject == Workloads(IN_WEB)


def test_rules_of_a_direction_that_is_not_isolated_have_no_effect() -> None:
    found = read(HEAD + "spec: {podSelector: {}, policyTypes: [Egress], ingress: [{}]}", "f")
    assert found.policies[0].ingress == ()
    assert [(each.path, each.warning) for each in found.problems] == [("spec.ingress", True)]


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("{}", Ports(Protocol.TCP)),
        ("{protocol: UDP}", Ports(Protocol.UDP)),
        ("{port: 80}", Ports(Protocol.TCP, 80, 80)),
        ("{port: 1, endPort: 65535, protocol: SCTP}", Ports(Protocol.SCTP, 1, 65535)),
        ("{port: 80, endPort: 80}", Ports(Protocol.TCP, 80, 80)),
        ("{port: http}", NamedPort("http", Protocol.TCP)),
        ("{port: dns-1, protocol: UDP}", NamedPort("dns-1", Protocol.UDP)),
    ],
)
def test_ports(text: str, port: Ports | NamedPort) -> None:
    assert ingress(f"ports: [{text}]").ports == (port,)


def test_expressions() -> None:
    policy = good(
        "spec: {podSelector: {matchLabels: {b: '', a/x: v}, matchExpressions: ["
        "{key: k, operator: In, values: [x, z]}, {key: k, operator: NotIn, values: ['1']},"
        "{key: k, operator: Exists}, {key: k, operator: DoesNotExist, values: []}]}}"
    )
    assert policy.subject.workloads == (
        label("a/x", "v"),
        label("b", ""),
        label("k", "x", "z"),
        Requirement("k", Operator.NOT_IN, ("1",)),
        Requirement("k", Operator.EXISTS),
        Requirement("k", Operator.DOES_NOT_EXIST),
    )


def test_host_bits_are_cut_off_as_kubernetes_does() -> None:
    text = "spec: {ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/8, except: ['10.9.9.9/16']}}]}]}"
    found = read(HEAD + text, "f")
    assert [each.warning for each in found.problems] == [True, True]
    peers = found.policies[0].ingress[0].peers
    assert peers == (Networks((ip_network("10.0.0.0/8"),), (ip_network("10.9.0.0/16"),)),)


def test_the_servers_metadata_is_accepted() -> None:
    policy = good(
        "spec: {}\nstatus: {conditions: []}\n",
        head="""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: a.b-c
  uid: 3
  resourceVersion: "5"
  generation: 1
  creationTimestamp: 2024-01-01T00:00:00Z
  labels: {app.kubernetes.io/name: x, z: ""}
  annotations: {Example.com/Text: "any text: at all"}
  ownerReferences: [{controller: true}]
  finalizers: []
  managedFields: [{f:spec: {}}]
""",
    )
    assert policy.name == "default/a.b-c"
    assert policy.subject.namespaces == (label(NAMESPACE_NAME, "default"),)


RULE = "spec: {podSelector: {matchLabels: {a: b}}, ingress: [%s]}"

BAD_RULES = [
    ("{form: []}", 'spec.ingress[0].form: unknown field; did you mean "from"?'),
    ("{from: {}}", "spec.ingress[0].from: a list is expected, not a map"),
    ("{}, null", "spec.ingress[1]: a map is expected, not null"),
    ("{from: [~]}", "spec.ingress[0].from[0]: a map is expected, not null"),
    ("{from: [{}]}", "spec.ingress[0].from[0]: a peer has to have one of"),
    ("{from: [{podSelector: ~}]}", "spec.ingress[0].from[0]: a peer has to have one of"),
    ("{from: [{podselector: {}}]}", 'from[0].podselector: unknown field; did you mean "podSel'),
    ("{from: [{podSelector: {app: x}}]}", "from[0].podSelector.app: unknown field"),
    ("{from: [{ipBlock: {}}]}", "from[0].ipBlock.cidr: required"),
    ("{from: [{ipBlock: {cidr: 10.0.0.0}}]}", 'ipBlock.cidr: "10.0.0.0" is no prefix'),
    ("{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}", "ipBlock.cidr: "),
    ("{from: [{ipBlock: {cidr: 10.0.0.0/255.0.0.0}}]}", "ipBlock.cidr: "),
    ("{from: [{ipBlock: {cidr: 010.0.0.0/8}}]}", "ipBlock.cidr: "),
    ("{from: [{ipBlock: {cidr: 10.0.0.0/08}}]}", "ipBlock.cidr: "),
    ("{from: [{ipBlock: {cidr: '::ffff:10.0.0.0/104'}}]}", "is IPv4 in IPv6"),
    ("{from: [{ipBlock: {cidr: 'fe80::%e/64'}}]}", "ipBlock.cidr: "),
    ("{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/9]}}]}", "except[0]: 11.0.0.0/9 is"),
    ("{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}", "except[0]: "),
    ("{from: [{ipBlock: {cidr: 10.0.0.0/8, except: ['::/9']}}]}", "except[0]: "),
    ("{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}", "from[0]: a peer with an ipBlock"),
    ("{ports: [~]}", "spec.ingress[0].ports[0]: a map is expected, not null"),
    ("{ports: [80]}", "spec.ingress[0].ports[0]: a map is expected, not the number 80"),
    ("{ports: [{port: 0}]}", "ports[0].port: 0 is not within 1 to 65535"),
    ("{ports: [{port: 65536}]}", "ports[0].port: 65536 is not within"),
    ("{ports: [{port: '80'}]}", "ports[0].port: \"80\" is no name of a port"),
    ("{ports: [{port: -1}]}", "ports[0].port: -1"),
    ("{ports: [{port: 80.0}]}", "ports[0].port: 80.0 is a number"),
    ("{ports: [{port: Http}]}", "ports[0].port: "),
    ("{ports: [{port: a--b}]}", "ports[0].port: "),
    ("{ports: [{port: sixteen-letters-}]}", "ports[0].port: "),
    ("{ports: [{endPort: 80}]}", "ports[0].endPort: needs a port that is a number"),
    ("{ports: [{port: http, endPort: 80}]}", "ports[0].endPort: needs a port that is a number"),
    ("{ports: [{port: 80, endPort: 79}]}", "ports[0].endPort: 79 is less than the port, 80"),
    ("{ports: [{port: 80, endPort: '81'}]}", "endPort: a decimal number from 1 to 65535"),
    ("{ports: [{protocol: tcp}]}", 'protocol: "tcp" is none of TCP, UDP, SCTP; did'),
    ("{ports: [{protocol: ICMP}]}", "ports[0].protocol: "),
    ("{ports: [{protocol: ''}]}", "ports[0].protocol: "),
    ("{from: [], from: []}", "spec.ingress[0].from: the key is there already"),
]  # fmt: skip

BAD_SELECTORS = [
    ("{matchLabels: {a: no}}", 'matchLabels.a: no is a boolean in YAML'),
    ("{matchLabels: {on: x}}", 'matchLabels.on: the key is a boolean'),
    ("{matchLabels: {a: 1.10}}", 'quote it: "1.10"'),
    ("{matchLabels: {a: ~}}", "matchLabels.a: a string is expected, not null"),
    ("{matchLabels: {a: -x}}", 'matchLabels.a: "-x" is no value of a label'),
    ("{matchLabels: {a: %s}}" % ("x" * 64), "matchLabels.a: "),
    ("{matchLabels: {A/b: x}}", 'matchLabels["A/b"]: "A/b" is no key'),
    ("{matchLabels: {'': x}}", 'matchLabels[""]: "" is no key'),
    ("{matchLabels: {'a/': x}}", "is no key"),
    ("{matchLabels: {'/a': x}}", "is no key"),
    ("{matchExpressions: [{key: a, operator: In}]}", "values: the operator In needs"),
    ("{matchExpressions: [{key: a, operator: Exists, values: [b]}]}", "the operator Exists has no"),
    ("{matchExpressions: [{key: a, operator: Gt, values: ['1']}]}", "operator: \"Gt\" is none of"),
    ("{matchExpressions: [{operator: Exists}]}", "matchExpressions[0].key: required"),
    ("{matchExpressions: [{key: a}]}", "matchExpressions[0].operator: required"),
    ("{matchExpressions: [{key: a, operator: In, values: [1]}]}", "values[0]: 1 is a number"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "said"),
    BAD_RULES + [(f"{{from: [{{podSelector: {each}}}]}}", said) for each, said in BAD_SELECTORS],
)
def test_rules_that_are_refused(rule: str, said: str) -> None:
    policy, problems = bad(RULE.replace("%s", rule))
    (problem,) = problems
    assert problem.startswith("4: spec.ingress[")
    assert said in problem
    # The subject is as written: nobody else is isolated.
    assert policy.subject == Workloads(IN_WEB, (label("a", "b"),))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{podSelector: {}, Ingress: []}", 'spec.Ingress: unknown field; did you mean "ingress"?'),
        ("{podSelector: {}, policyTypes: [ingress]}", "spec.policyTypes[0]: "),
        ("{podSelector: {}, policyTypes: Ingress}", "spec.policyTypes: a list is expected"),
        ("{podSelector: {}, policyTypes: [Egress, Egress, Egress]}", "spec.policyTypes: more than"),
        ("{podSelector: {}}\nextra: 1", "extra: unknown field"),
    ],
)
def test_specs_that_are_refused(spec: str, said: str) -> None:
    _, problems = bad(f"spec: {spec}")
    assert [said in problem for problem in problems] == [True]


@pytest.mark.parametrize(
    "text",
    [
        "spec: []",
        "spec: {podSelector: []}",
        "spec: {podSelector: {matchLabels: {a: 1}}}",
        "spec: {podSelector: {matchLabel: {a: b}}}",
        "spec: {podSelector: {matchLabels: {a: b, a: c}}}",
        "spec: {podSelector: {matchLabels: {a: b}}, podSelector: {}}",
        "spec: {podSelector: {matchLabels: {a: b}}}\nspec: {}",
        "spec: {<<: {}, podSelector: {matchLabels: {a: b}}}",
    ],
)
def test_a_subject_that_cannot_be_read_is_the_namespace(text: str) -> None:
    policy, problems = bad(text)
    assert policy.subject == Workloads(IN_WEB)
    assert problems[-1].endswith(
        "spec.podSelector: cannot be read: all workloads of the namespace web are isolated"
    ) or any("all workloads of the namespace web" in each for each in problems)


@pytest.mark.parametrize(
    "metadata",
    [
        "metadata: {name: p, namespace: 5}",
        "metadata: {name: p, namespace: Web}",
        "metadata: {name: p, namespace: a.b}",
        "metadata: {name: p, namspace: web}",
        "metadata: {name: p, namespace: a, namespace: b}",
        "metadata: {name: p}\nmetadata: {name: p, namespace: b}",
        "metadata: [p]",
        "metdata: {name: p}",
    ],
)
def test_a_namespace_that_cannot_be_read_is_all_of_them(metadata: str) -> None:
    head = f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n{metadata}\n"
    policy, problems = bad("spec: {podSelector: {matchLabels: {a: b}}}", head)
    assert policy.subject == Workloads((), (label("a", "b"),))
    assert any("workloads of all namespaces are isolated" in each for each in problems)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ("{namespace: web}", "metadata.name: required"),
        ("{namespace: web, generateName: x-}", "metadata.name: required; generateName is not read"),
        ("{namespace: web, name: 5}", 'metadata.name: 5 is a number in YAML'),
        ("{namespace: web, name: A_b}", 'metadata.name: "A_b" is no DNS name'),
        ("{namespace: web, name: a..b}", "metadata.name: "),
        ("{namespace: web, name: %s}" % ("a" * 254), "metadata.name: "),
        ("{namespace: web, name: p, labels: {a: true}}", "metadata.labels.a: true is a boolean"),
        ("{namespace: web, name: p, annotations: {a: 1}}", "metadata.annotations.a: 1 is a number"),
        ("{namespace: web, name: p, label: {}}", 'label: unknown field; did you mean "labels"'),
    ],
)  # fmt: skip
def test_metadata_that_is_refused(metadata: str, said: str) -> None:
    head = f"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {metadata}\n"
    policy, problems = bad("spec: {}", head)
    assert [said in problem for problem in problems] == [True]
    assert policy.subject == Workloads(IN_WEB)
    assert policy.name.startswith("web/")
