"""What services, workers' hosts and the supervisor tell each other over the control plane: msgpack, so that no side
needs the other's classes."""

from __future__ import annotations

import msgspec

from agent.handshake import Ticket


class ControlError(Exception):
    """The cluster cannot be reached or does not answer; the message says what to do, or what was asked."""


class WorkerOrder(msgspec.Struct, frozen=True):
    """How a worker is started: the command without its sockets. `host`: the address its door listens at, "" = that of
    the machine it is placed on."""

    command: list[str]
    host: str
    start_timeout_s: float
    stuck_after_s: float


class ClusterOrder(msgspec.Struct, frozen=True):
    """What the supervisor keeps up. `gpus` None: one for each worker where the cluster has any."""

    worker: WorkerOrder
    least: int
    most: int
    idle_s: float
    cpus: float
    gpus: float | None


class HostReport(msgspec.Struct, frozen=True):
    """A worker and the process that owns it. `why`: what is wrong while it is not ready; `ticket` where one was asked
    for and it is ready."""

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


class Beat(msgspec.Struct, frozen=True):
    """A service lives. `leased`: its sessions by worker; `refused`: callers without a place since the last beat."""

    service: str
    order: ClusterOrder
    leased: dict[str, int]
    refused: int = 0
