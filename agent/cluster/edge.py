"""A service that joins a cluster: what it needs in place of workers of its own."""

from __future__ import annotations

from dataclasses import dataclass

from agent.cluster.control import RayControl
from agent.cluster.messages import ClusterOrder, WorkerOrder
from agent.cluster.pool import ClusterPool
from agent.config import ServerConfig
from agent.ids import secret


@dataclass(frozen=True)
class Edge:
    """`control` is joined."""

    control: RayControl
    pool: ClusterPool

    @classmethod
    def join(cls, config: ServerConfig, command: list[str]) -> Edge:
        """Blocks for some seconds. `command` starts a worker. Raises `ControlError`."""
        control = RayControl(config.cluster.name)
        control.join(config.cluster.address)
        keep_s = config.session.resume_s
        return cls(
            control, ClusterPool(control, secret("edge"), order(config, command), keep_s, config.cluster.store_bytes)
        )


def order(config: ServerConfig, command: list[str]) -> ClusterOrder:
    """What is to be kept up by this configuration."""
    cluster = config.cluster
    worker = WorkerOrder(
        command, cluster.worker_host, config.model.start_timeout_s, config.model.stuck_after_s, config.model.drain_s
    )
    gpus = None if cluster.gpus_per_worker == "auto" else cluster.gpus_per_worker
    return ClusterOrder(
        worker,
        cluster.min_workers,
        cluster.max_workers,
        cluster.idle_s,
        cluster.cpus_per_worker,
        gpus,
        cluster.leave_s,
    )
