# SPDX-License-Identifier: Apache-2.0
"""What to do about a pod, from what the runtime lists of it. Pure.

As `podSandboxChanged` and `computePodActions` of a kubelet decide:

    sandboxes of the UID       decision
    none                       the first attempt
    the newest is not ready    all are stopped; the next attempt
    several are ready          all are stopped; the next attempt
    other manifest, network    all are stopped; the next attempt
    ready, without an address  all are stopped; the next attempt
    one is ready               containers that are missing or ended are started,
                               if the restart policy wants it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metropolis.test.kubelet.manifest import Container, Pod

RESTART_FIRST_S, RESTART_MOST_S = 10.0, 300.0


@dataclass(frozen=True)
class Sandbox:
    """A sandbox of the pod. made: time of its creation. hash: its manifest's.
    address: whether it has one.
    """

    id: str
    attempt: int
    made: int
    ready: bool
    hash: str
    host_network: bool
    address: bool


@dataclass(frozen=True)
class Ran:
    """A container of the pod. status: None while it runs, or has not begun."""

    id: str
    name: str
    sandbox: str
    attempt: int
    running: bool
    status: int | None = None


@dataclass(frozen=True)
class Start:
    """A container to start, for the attempt-th time, from 0."""

    container: Container
    attempt: int


@dataclass(frozen=True)
class Decision:
    """stop: sandboxes to stop with their containers, since `why`. attempt: of
    the sandbox to run, None: `keep` stays. start: containers to start in it.
    """

    stop: tuple[str, ...] = ()
    why: str = ""
    attempt: int | None = None
    keep: str = ""
    start: tuple[Start, ...] = ()


def decide(pod: Pod, sandboxes: Sequence[Sandbox], containers: Sequence[Ran]) -> Decision:
    """Return what the pod needs now, from what the runtime has of its UID."""
    newest_first = sorted(sandboxes, key=lambda one: (one.attempt, one.made), reverse=True)
    last = {
        name: max((one for one in containers if one.name == name), key=lambda one: one.attempt)
        for name in {one.name for one in containers}
    }
    newest = newest_first[0] if newest_first else None
    why = _changed(pod, newest, newest_first) if newest else ""
    # Containers end with their sandbox, also those that seem to run.
    gone = newest is None or bool(why)
    start = tuple(
        Start(one, attempt)
        for one in pod.containers
        if (attempt := _next(pod, last.get(one.name), gone=gone)) is not None
    )
    if newest is None:
        return Decision(attempt=0 if start else None, start=start)
    if why:
        stop = tuple(one.id for one in newest_first)
        if not start:
            # A pod that has done its work gets no new sandbox.
            return Decision(stop=stop if newest.ready else (), why=why)
        return Decision(stop=stop, why=why, attempt=newest.attempt + 1, start=start)
    return Decision(keep=newest.id, start=start)


def _changed(pod: Pod, newest: Sandbox, sandboxes: Sequence[Sandbox]) -> str:
    """Return why the pod needs a new sandbox; "": it does not."""
    if not newest.ready:
        return "its sandbox has ended"
    if sum(one.ready for one in sandboxes) > 1:
        return "several sandboxes are ready"
    if newest.host_network != pod.host_network:
        return "its network is another one"
    if newest.hash != pod.hash:
        return "its manifest is another one"
    if not newest.address and not pod.host_network:
        return "its sandbox has no address"
    return ""


def _next(pod: Pod, last: Ran | None, *, gone: bool) -> int | None:
    """Return the number of a container's next start; None: none is wanted.

    gone: it has ended with its sandbox, whatever the runtime says.
    """
    if last is None:
        return 0
    if last.running and not gone:
        return None
    failed = last.running or last.status != 0
    wanted = pod.restart_policy == "Always" or (pod.restart_policy == "OnFailure" and failed)
    return last.attempt + 1 if wanted else None


def restart_delay_s(restarts: int) -> float:
    """Return the seconds from a container's end to its start. restarts: those
    that have been; the first is at once, then the delay doubles.
    """
    if restarts == 0:
        return 0.0
    return min(RESTART_FIRST_S * (1 << min(restarts - 1, 10)), RESTART_MOST_S)


def garbage(
    known: Mapping[str, Sequence[Sandbox]], wanted: frozenset[str], used: frozenset[str]
) -> list[str]:
    """Return the ids of the sandboxes to remove, the oldest first.

    known: sandboxes by UID. wanted: UIDs of the pods that should run: their
    newest sandbox stays, which has the next attempt's number. used: sandboxes
    with containers.
    """
    found = []
    for uid, sandboxes in known.items():
        oldest_first = sorted(sandboxes, key=lambda one: (one.attempt, one.made))
        if uid in wanted:
            del oldest_first[-1:]
        found += [one for one in oldest_first if not one.ready and one.id not in used]
    return [one.id for one in sorted(found, key=lambda one: one.made)]
