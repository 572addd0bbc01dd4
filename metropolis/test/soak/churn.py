# SPDX-License-Identifier: Apache-2.0
"""The threads' operations on a host, and the invariants at their pauses.

A slot is a workload with its pod. One thread at a time has it, and so knows
which answers are possible, see `belief`. After a call with unknown outcome (the
service died, the caller gave up) it knows nothing until the next answer.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import grpc

from metropolis.node.core.network.workloads.spec import workload_pb2 as pb
from metropolis.test.soak import belief, census
from metropolis.test.soak.belief import Answer, Broken, State
from metropolis.test.soak.world import Host
from metropolis.test.world.namespaces import Netns

if TYPE_CHECKING:
    from collections.abc import Iterator

_CALL_S = 30.0
_SETTLE_S = 60.0  # for delayed work of the kernel: dead namespaces
_PORT = 1001  # of the first workload; fifty times the last one's is a port, too
_BURST = 32  # calls at once; more than the service's threads
_Code = grpc.StatusCode


_LIMITS: Final = pb.Bandwidth(ingress_rate=10**7, ingress_burst=2**32 - 1, egress_rate=10**6)


class Violation(Exception):
    """A promise was broken; the text has promise, workload and observation."""


class Slot:
    """A workload. port: each has one, by TCP; every third has it by UDP, and
    fifty successive ones of SCTP, too. 0: no host ports. Another third has
    limits.
    """

    def __init__(self, workload_id: str, port: int = 0) -> None:
        self.workload_id = workload_id
        self.ports: list[pb.PortMapping] = []
        if port:
            self.ports.append(pb.PortMapping(host_port=port, container_port=80))
        if port % 3 == 1:
            self.ports.append(pb.PortMapping(host_port=port, container_port=53, protocol="udp"))
            self.ports += [
                pb.PortMapping(host_port=port * 50 + n, container_port=1 + n, protocol="sctp")
                for n in range(50)
            ]
        self.limits = _LIMITS if port and port % 3 == 0 else None
        self.pod = Netns()
        self.belief = belief.DETACHED
        self.busy = threading.Lock()

    @property
    def state(self) -> State:
        """Return the state of the workload, as far as it is known."""
        return self.belief.state

    @property
    def ips(self) -> tuple[str, ...]:
        """Return its addresses, if it is known to be attached."""
        return self.belief.ips


class Gate:
    """A lock, shared or exclusive."""

    def __init__(self) -> None:
        self._inside = 0
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold it together with others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold it exclusively, once all others have left."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._inside)
        try:
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()


class Churn:
    """Threads at work on a host.

    mortal: the service is killed and restarted meanwhile. usable: addresses of
    the smaller pool. counts: operations by name, and answers by code;
    `operations` counts calls of the API.
    """

    def __init__(
        self, host: Host, *, mortal: bool, slots: int, usable: int, threads: int, seed: int
    ) -> None:
        self.host = host
        self.gate = Gate()
        self.counts: Counter[str] = Counter()
        self.filling = True
        self.violations: list[str] = []
        self._mortal = mortal
        self._usable = usable
        self._slots = [Slot(f"{host.name}-{number}", _PORT + number) for number in range(slots)]
        self._spare = Slot(f"{host.name}-spare")
        self._stop = threading.Event()
        self._random = random.Random(seed)
        self._mutex = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed} {n}"),))
            for n in range(threads)
        ]

    # ---- For the driver -----------------------------------------------------

    def start(self) -> None:
        """Let the threads begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait for the calls under way; the threads end."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def verify(self) -> int:
        """With all threads paused, compare the service, the kernel and the
        slots; return how many are attached. Raises Violation.
        """
        with self.gate.alone():
            attached = self._settled()
            self._try_pool(len(attached))
            self.counts["verifications"] += 1
            return len(attached)

    def burst(self) -> None:
        """Make so many concurrent calls that all of the service's threads and
        sockets exist: any more of them later are leaks. Paused, as in verify.
        """
        with self.gate.alone():
            chosen = self._slots[:_BURST]
            calls = [self._detach_later(slot) for slot in chosen]
            calls += [self._call("List", pb.ListRequest()) for _ in chosen]
            calls += [self._attach_later(slot) for slot in chosen]
            calls += [self._call("Status", pb.StatusRequest()) for _ in chosen]
            for call in calls:
                self._outcome(call)
            # Not with the others: a Detach may be served before an Attach.
            for call in [self._detach_later(slot) for slot in chosen]:
                self._outcome(call)
            for slot in chosen:
                self._forget(slot)
            self._agreed()

    def drain(self) -> None:
        """Collect everything; the threads have stopped."""
        attached = sum(slot.state is State.ATTACHED for slot in self._slots)
        answer = self._call("Collect", pb.CollectRequest()).result()
        if answer.remaining or len(answer.removed) < attached:
            raise Violation(
                f"Collect removed {len(answer.removed)} of {attached} or more; "
                f"{[one.reason for one in answer.remaining][:3]}"
            )
        for slot in self._slots:
            self._forget(slot)

    def close(self) -> None:
        """End the pods."""
        for slot in [*self._slots, self._spare]:
            slot.pod.close()

    # ---- Threads ------------------------------------------------------------

    def _run(self, rng: random.Random) -> None:
        try:
            while not self._stop.is_set():
                with self.gate.shared():
                    slot = rng.choice(self._slots)
                    if slot.busy.acquire(blocking=False):
                        try:
                            self._step(slot, rng)
                        finally:
                            slot.busy.release()
        except Exception as error:
            # The driver reads it; the others go on until it does.
            self.violations.append(f"{type(error).__name__}: {error}")

    def _step(self, slot: Slot, rng: random.Random) -> None:
        if slot.state is State.UNKNOWN and rng.random() < 0.5:
            return self._detach(slot)
        dice = rng.random()
        for odds, act in (
            (0.05, self._die),
            (0.02, self._die_during_call),
            (0.10, self._cancel),
            (0.04, self._late),
            (0.05, self._twice_at_once),
            (0.04, self._both_at_once),
            (0.03, self._elsewhere),
            (0.03, self._garbage),
            (0.02, self._port_taken),
            (0.03, self._check),
            (0.04, self._limit),
        ):
            dice -= odds
            if dice < 0:
                return act(slot, rng)
        wanted = 0.85 if self.filling else 0.2
        if rng.random() < wanted:
            return self._attach(slot)
        return self._detach(slot)

    def _attach(self, slot: Slot) -> None:
        self._learn(slot, ("Attach", self._attach_later(slot)))

    def _detach(self, slot: Slot) -> None:
        self._learn(slot, ("Detach", self._detach_later(slot)))

    def _learn(self, slot: Slot, *calls: tuple[str, Any]) -> None:
        """Update the slot's belief from the answers to concurrent calls."""
        answers = [self._answer(method, call) for method, call in calls]
        try:
            slot.belief = belief.after_all(slot.belief, answers)
        except Broken as error:
            raise Violation(f"{slot.workload_id}: {error}; all at once: {answers}") from error

    def _answer(self, method: str, call: Any) -> Answer:
        code, message = self._outcome(call)
        ips = (
            tuple(str(ip_address(ip)) for ip in message.ip)
            if method == "Attach" and message
            else ()
        )
        details = "" if code is _Code.OK else str(call.details())
        return Answer(method, code, ips, lost=self._may_be_lost(code), details=details)

    def _die(self, slot: Slot, rng: random.Random) -> None:
        """End the pod's namespace; the next one has the same id."""
        self._count("deaths")
        slot.pod.close()
        slot.pod = Netns()
        if slot.state is State.ATTACHED:
            slot.belief = belief.UNKNOWN

    def _die_during_call(self, slot: Slot, rng: random.Random) -> None:
        self._count("deaths")
        call = self._attach_later(slot)
        time.sleep(rng.random() * 0.003)
        slot.pod.close()
        self._outcome(call)  # any: it may have been too early or too late
        slot.pod = Netns()
        slot.belief = belief.UNKNOWN

    def _cancel(self, slot: Slot, rng: random.Random) -> None:
        """Cancel a call while the service works."""
        self._count("cancelled calls")
        call = self._detach_later(slot) if rng.random() < 0.3 else self._attach_later(slot)
        time.sleep(rng.random() * 0.004)
        call.cancel()
        self._outcome(call)
        slot.belief = belief.UNKNOWN

    def _late(self, slot: Slot, rng: random.Random) -> None:
        """Let a call's deadline pass while the service works."""
        self._count("deadlines")
        self._outcome(self._attach_later(slot, timeout=0.0005 + rng.random() * 0.004))
        slot.belief = belief.UNKNOWN

    def _twice_at_once(self, slot: Slot, rng: random.Random) -> None:
        """Make two equal Attach calls at once."""
        calls = [self._attach_later(slot), self._attach_later(slot)]
        self._learn(slot, *[("Attach", call) for call in calls])

    def _both_at_once(self, slot: Slot, rng: random.Random) -> None:
        """Call Attach and Detach at once."""
        attach, detach = self._attach_later(slot), self._detach_later(slot)
        self._learn(slot, ("Attach", attach), ("Detach", detach))

    def _elsewhere(self, slot: Slot, rng: random.Random) -> None:
        """Detach with another namespace: the attachment stays."""
        other = Netns()
        try:
            netns = pb.NetNSAttachment(netns_path=other.path, if_name="eth0")
            request = pb.DetachRequest(workload_id=slot.workload_id, netns=netns)
            code, _ = self._outcome(self._call("Detach", request))
            if code is not _Code.OK and not self._may_be_lost(code):
                raise Violation(f"Detach of {slot.workload_id} elsewhere: {code.name}")
        finally:
            other.close()

    def _garbage(self, slot: Slot, rng: random.Random) -> None:
        self._count("bad requests")
        ids = ["", "x" * 300, "a\nb", "\u00e4"]
        paths = ["", "relative", "/nowhere", "/proc/self/ns/mnt", "/" + "x" * 5000, "/run"]
        if_names = ["", "x" * 16, "a/b", "..", "a b"]
        chosen = [slot.workload_id, slot.pod.path, "eth0"]
        spoilt = rng.randrange(3)
        chosen[spoilt] = rng.choice([ids, paths, if_names][spoilt])
        netns = pb.NetNSAttachment(netns_path=chosen[1], if_name=chosen[2])
        request = pb.AttachRequest(workload_id=chosen[0], netns=netns)
        code, _ = self._outcome(self._call("Attach", request))
        if code not in (_Code.INVALID_ARGUMENT, _Code.NOT_FOUND) and not self._may_be_lost(code):
            raise Violation(f"Attach of {chosen}: {code.name}")

    def _port_taken(self, slot: Slot, rng: random.Random) -> None:
        """Ask for a port of an attached workload."""
        if slot.state is not State.ATTACHED:
            return
        other = Netns()
        try:
            netns = pb.NetNSAttachment(netns_path=other.path, if_name="eth0")
            request = pb.AttachRequest(
                workload_id=f"{slot.workload_id}-other",
                netns=netns,
                port_mapping=[rng.choice(slot.ports)],
            )
            code, _ = self._outcome(self._call("Attach", request))
        finally:
            other.close()
        refused = (_Code.ALREADY_EXISTS, _Code.RESOURCE_EXHAUSTED)
        if code not in refused and not self._may_be_lost(code):
            raise Violation(f"Attach with a port of {slot.workload_id}: {code.name}")

    def _check(self, slot: Slot, rng: random.Random) -> None:
        """Check that an attachment has no differences, outside and inside."""
        netns = pb.NetNSAttachment(netns_path=slot.pod.path if rng.random() < 0.5 else "")
        request = pb.CheckRequest(workload_id=slot.workload_id, netns=netns)
        code, answer = self._outcome(self._call("Check", request))
        if slot.state is State.UNKNOWN or self._may_be_lost(code):
            return
        expected = _Code.OK if slot.state is State.ATTACHED else _Code.NOT_FOUND
        found = [one.what for each in answer.attachments for one in each.findings] if answer else []
        if code is not expected or found:
            raise Violation(f"Check of {slot.workload_id}, {slot.state.name}: {code.name} {found}")

    def _limit(self, slot: Slot, rng: random.Random) -> None:
        """Give a workload other limits, or none."""
        limits = rng.choice([None, _LIMITS, pb.Bandwidth(egress_rate=10**7)])
        request = pb.SetBandwidthRequest(
            workload_id=slot.workload_id, if_name="eth0", bandwidth=limits
        )
        code, _ = self._outcome(self._call("SetBandwidth", request))
        if slot.state is State.UNKNOWN or self._may_be_lost(code):
            return
        expected = _Code.OK if slot.state is State.ATTACHED else _Code.NOT_FOUND
        if code is not expected:
            raise Violation(f"SetBandwidth of {slot.workload_id}, {slot.state.name}: {code.name}")

    # ---- Calls --------------------------------------------------------------

    def _call(self, method: str, request: Any, timeout: float = _CALL_S) -> Any:
        self._count("operations")
        self._count(method)
        stub = getattr(self.host.stub, method)
        return stub.future(request, timeout=timeout, wait_for_ready=True)

    def _attach_later(self, slot: Slot, timeout: float = _CALL_S) -> Any:
        netns = pb.NetNSAttachment(netns_path=slot.pod.path, if_name="eth0")
        request = pb.AttachRequest(
            workload_id=slot.workload_id,
            netns=netns,
            port_mapping=slot.ports,
            bandwidth=slot.limits,
        )
        return self._call("Attach", request, timeout)

    def _detach_later(self, slot: Slot) -> Any:
        return self._call("Detach", pb.DetachRequest(workload_id=slot.workload_id))

    def _outcome(self, call: Any) -> tuple[grpc.StatusCode, Any]:
        try:
            answer, code = call.result(), _Code.OK
        except grpc.FutureCancelledError:
            answer, code = None, _Code.CANCELLED
        except grpc.RpcError as error:
            answer, code = None, error.code()
            if code in (_Code.INTERNAL, _Code.UNKNOWN):
                raise Violation(f"{code.name}: {error.details()}") from error
        self._count(code.name)
        return code, answer

    def _may_be_lost(self, code: grpc.StatusCode) -> bool:
        return self._mortal and code in (_Code.UNAVAILABLE, _Code.CANCELLED)

    def _count(self, name: str) -> None:
        with self._mutex:
            self.counts[name] += 1

    def _forget(self, slot: Slot) -> None:
        slot.belief = belief.DETACHED

    # ---- What must hold -----------------------------------------------------

    def _agreed(self) -> Sequence[pb.Attachment]:
        """Wait until service and kernel agree: the kernel removes dead
        namespaces late, and the service links after its answer.
        """
        deadline = time.monotonic() + _SETTLE_S
        while True:
            listed = self.host.stub.List(pb.ListRequest(), timeout=_CALL_S, wait_for_ready=True)
            problem = self._differences(listed.attachments)
            if not problem:
                return listed.attachments
            if time.monotonic() > deadline:
                raise Violation(problem)
            time.sleep(0.05)

    def _settled(self) -> dict[str, tuple[str, ...]]:
        """Wait until service and kernel agree; so must the slots then."""
        attached = {
            one.workload_id: tuple(str(ip_address(ip)) for ip in one.ip) for one in self._agreed()
        }
        for slot in self._slots:
            found = attached.get(slot.workload_id)
            expected = slot.ips if slot.state is State.ATTACHED else None
            if slot.state is not State.UNKNOWN and found != expected:
                raise Violation(
                    f"{slot.workload_id}, {slot.state.name} with {expected}, is listed with {found}"
                )
        attached_slots = [slot for slot in self._slots if slot.state is State.ATTACHED]
        for slot in self._random.sample(attached_slots, min(4, len(attached_slots))):
            addresses, defaults = census.inside(slot.pod)
            if addresses != set(slot.ips) or defaults != len(slot.ips):
                raise Violation(
                    f"{slot.workload_id} with {slot.ips} has {sorted(addresses)} and "
                    f"{defaults} default routes"
                )
        return attached

    def _differences(self, listed: Sequence[pb.Attachment]) -> str:
        """Return the differences between List and the kernel, or ""."""
        links, routes = census.workloads(self.host)
        ips = [str(ip_address(ip)) for one in listed for ip in one.ip]
        if len(set(ips)) != len(ips):
            raise Violation(f"an address is in use twice: {Counter(ips).most_common(1)}")
        expected = sorted((one.workload_id, one.host_ifindex, one.host_interface) for one in listed)
        found = sorted((alias, seen.ifindex, seen.name) for alias, seen in links)
        if expected != found:
            odd = set(expected) ^ set(found)
            return f"{len(listed)} are listed, {len(links)} links are there: {sorted(odd)[:5]}"
        if routes != set(ips):
            return f"routes and addresses differ: {sorted(routes ^ set(ips))[:5]}"
        ports = {slot.workload_id: slot.ports for slot in self._slots}
        wanted = {
            (one.protocol or "tcp", one.host_port, str(ip_address(ip)), one.container_port)
            for each in listed
            for ip in each.ip
            for one in ports.get(each.workload_id, ())
        }
        led = census.host_ports(self.host)
        if led != wanted:
            return f"host ports differ: {sorted(led ^ wanted)[:5]}"
        seconds = {f"wb{each.host_interface[2:]}" for each in listed if each.bandwidth.egress_rate}
        if (there := census.ifbs(self.host)) != seconds:
            return f"links of limits differ: {sorted(there ^ seconds)[:5]}"
        return ""

    def _try_pool(self, before: int) -> None:
        """Check that one more fits if and only if the pool is not full: no
        address is lost, and none too many is assigned.
        """
        code, _ = self._outcome(self._attach_later(self._spare))
        self._detach_later(self._spare).result()
        left = len(self._agreed())
        if not belief.one_more_is_right(code, before, left, self._usable):
            raise Violation(f"{before} of {self._usable} attached; one more: {code.name}")
        if left == self._usable:
            self._count("pool full")
