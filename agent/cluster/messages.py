"""What services, workers' hosts and the supervisor tell each other over the control plane: msgpack, so that no side
needs the other's classes."""

from __future__ import annotations

import msgspec

from agent.handshake import Ticket


class ControlError(Exception):
    """The cluster cannot be reached or does not answer; the message says what to do, or what was asked."""


class WorkerOrder(msgspec.Struct, frozen=True):
    """How a worker is started: the command without its sockets. `host`: the address its door listens at, "" = that of
    the machine it is placed on; `drain_s`: so long its sessions may take to leave when it is told to go."""

    command: list[str]
    host: str
    start_timeout_s: float
    stuck_after_s: float
    drain_s: float = 60.0


class ClusterOrder(msgspec.Struct, frozen=True):
    """What the supervisor keeps up. `gpus` None: one for each worker where the cluster has any; `idle_s`, `leave_s`: so
    long a worker must have been dispensable before it gets no newcomers, and then its callers may take to end."""

    worker: WorkerOrder
    least: int
    most: int
    idle_s: float
    cpus: float
    gpus: float | None
    leave_s: float = 600.0


class HostReport(msgspec.Struct, frozen=True):
    """A worker and the process that owns it. `why`: what is wrong while it is not ready; `ticket` where one was asked
    for and it is ready; `going`: it was told to go, and has gone when there is no `worker_pid`."""

    ready: bool
    pid: int
    worker_pid: int | None = None
    why: str = ""
    model: str = ""
    slots: int = 0
    capacity: int = 0
    busy: float = 0.0
    restarts: int = 0
    ticket: Ticket | None = None
    going: bool = False


class Beat(msgspec.Struct, frozen=True):
    """A service lives. `leased`: its sessions by worker; `refused`: callers without a place since the last beat."""

    service: str
    order: ClusterOrder
    leased: dict[str, int]
    refused: int = 0


class Told(msgspec.Struct, frozen=True):
    """What a service hears for its beat. `leaving`: workers that get no newcomers as long as others have room."""

    leaving: list[str] = []
