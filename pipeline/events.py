"""The way of a training worker's news to the driver: a mailbox on the cluster, or in the process without one."""

from collections.abc import Callable
from typing import Any, Protocol

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Event = dict[str, Any]


class Outbox(Protocol):
    """Where a training worker puts its news."""

    def put(self, event: Event) -> None:
        """Adds one event."""
        ...


class Listener:
    """Hears each event at once, in the process that makes it."""

    def __init__(self, hear: Callable[[Event], None]) -> None:
        self.put = hear


class Mailbox:
    """Keeps events until they are taken."""

    def __init__(self) -> None:
        self._events: list[Any] = []

    def put(self, event: Any) -> None:
        """Adds one event."""
        self._events.append(event)

    def take(self) -> list[Any]:
        """Returns all events since the last call, oldest first."""
        events, self._events = self._events, []
        return events


class ClusterMailbox:
    """A mailbox in an actor of its own, on the driver's machine: a machine that leaves does not take it along.

    It keeps events as bytes, so that the actor need not import what they are made of, torch among it.
    """

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        mailbox: Any = ray.remote(Mailbox)
        self._actor = mailbox.options(num_cpus=0, scheduling_strategy=here).remote()

    def put(self, event: Event) -> None:
        """Adds one event."""
        data = cloudpickle.dumps(event)  # type: ignore[no-untyped-call]
        ray.get(self._actor.put.remote(data))

    def take(self) -> list[Event]:
        """Returns all events since the last call, oldest first."""
        return [cloudpickle.loads(event) for event in ray.get(self._actor.take.remote())]
