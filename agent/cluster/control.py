"""The control plane: the only module that knows Ray. Workers' hosts, the supervisor and the store are named actors, so
that whoever joins finds them; nothing that a caller says or hears comes this way but the copies of sessions.

Ray's calls may block for as long as its head is away: they run in threads, and none is waited for longer than it may
take.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

import msgspec

from agent.cluster.host import WorkerHost
from agent.cluster.ledger import SETTLE_S, Ledger
from agent.cluster.messages import Beat, ClusterOrder, ControlError, HostReport, Told
from agent.cluster.scaling import needs
from agent.cluster.store import SessionStore

P = ParamSpec("P")
T = TypeVar("T")
WORKER = "worker-"
SUPERVISOR = "supervisor"
STORE = "sessions"
CALL_S = 5.0
_ON_HEAD = {"node:__internal_head__": 0.001}
"""Where Ray's own memory lives: with that machine the control plane is lost anyway."""


class RayControl:
    """Of the namespace `name`. `join` first, but in an actor, which has joined already."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._handles: dict[str, object] = {}

    def join(self, address: str) -> None:
        """Blocks for some seconds. Raises `ControlError`."""
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ControlError("a cluster needs Ray, which is not installed: pip install 'agogic[cluster]'") from error
        try:
            ray.init(
                address=address,
                namespace=self._name,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            why = " ".join(str(error).split())[:200]
            raise ControlError(
                f"no Ray cluster is reached at {address!r} ({why}); start one with `ray start --head`, or set "
                "cluster.address"
            ) from error

    # --- what a service asks ---

    async def worker_names(self) -> list[str]:
        """Of all workers' hosts that live or are being placed. Raises `ControlError`."""
        return [name for name in await self._names() if name.startswith(WORKER)]

    async def report(self, name: str, *, with_ticket: bool = False) -> HostReport:
        """Raises `ControlError`."""
        data = await self._ask(name, "report", with_ticket)
        return msgspec.msgpack.decode(data, type=HostReport)

    async def beat(self, beat: Beat) -> Told:
        """Tells the supervisor. Raises `ControlError`."""
        return msgspec.msgpack.decode(await self._ask(SUPERVISOR, "beat", msgspec.msgpack.encode(beat)), type=Told)

    async def update(self, data: bytes) -> bytes:
        """Of the store. Raises `ControlError`."""
        return await self._ask(STORE, "update", data)

    async def claim(self, data: bytes) -> bytes:
        """Of the store. Raises `ControlError`."""
        return await self._ask(STORE, "claim", data)

    async def ledger(self, data: bytes) -> bytes:
        """Of the store. Raises `ControlError`."""
        return await self._ask(STORE, "ledger", data)

    async def start_services(self, order: ClusterOrder, keep_s: float, max_bytes: int) -> None:
        """Supervisor and store, where there are none. Raises `ControlError`."""
        from agent.cluster.supervisor import Supervisor

        await self._in_thread(
            self._make, Supervisor, SUPERVISOR, (msgspec.msgpack.encode(order), self._name), {"resources": _ON_HEAD}
        )
        await self._in_thread(self._make, _Store, STORE, (keep_s, max_bytes), {"resources": _ON_HEAD})

    # --- what the supervisor does ---

    async def start_worker(self, number: int, order: ClusterOrder) -> None:
        """Asks Ray to place one. Raises `ControlError`."""
        await self._in_thread(self._start_worker, number, order)

    async def drain_worker(self, name: str) -> None:
        """Its sessions are to leave, and then it ends. Raises `ControlError`."""
        await self._ask(name, "drain")

    async def stop_worker(self, name: str) -> None:
        """Ends it, and Ray does not start it again. Raises `ControlError`."""
        try:
            await self._ask(name, "stop")
        finally:
            await self._in_thread(self._kill, name)

    # --- inside ---

    async def _names(self) -> list[str]:
        def listed() -> list[str]:
            import ray

            found: Iterable[str] = ray.util.list_named_actors()
            return sorted(found)

        return await self._in_thread(listed)

    async def _ask(self, name: str, method: str, *arguments: object) -> bytes:
        import ray

        try:
            handle = self._handles.get(name) or await self._in_thread(self._find, name)
            # Both are kept here: what nobody holds is forgotten by Ray.
            reference = getattr(handle, method).remote(*arguments)
            answer = asyncio.wrap_future(reference.future())
            answer.add_done_callback(lambda late: late.cancelled() or late.exception())
            done, _ = await asyncio.wait({answer}, timeout=CALL_S)
        except (ray.exceptions.RayError, ValueError) as error:
            self._handles.pop(name, None)
            raise ControlError(f"{name} cannot be asked: {_line(error)}") from error
        if not done:
            raise ControlError(f"{name} has not answered for {CALL_S:g} s")
        try:
            result = answer.result()
        except Exception as error:  # the actor's own mistakes come as classes made at run time
            if isinstance(error, ray.exceptions.ActorDiedError):
                self._handles.pop(name, None)
            raise ControlError(f"{name} has failed: {_line(error)}") from error
        return result if isinstance(result, bytes) else b""

    async def _in_thread(self, do: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        import ray

        try:
            async with asyncio.timeout(CALL_S):
                return await asyncio.to_thread(do, *arguments, **named)
        except TimeoutError as error:
            raise ControlError(f"Ray has not answered for {CALL_S:g} s") from error
        except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as error:
            raise ControlError(f"Ray: {_line(error)}") from error

    def _find(self, name: str) -> object:
        import ray

        handle: object = ray.get_actor(name)
        self._handles[name] = handle
        return handle

    def _make(self, kind: type, name: str, arguments: tuple[object, ...], placed: dict[str, object]) -> None:
        """An actor that lives on when whoever made it is gone, and is restarted when its machine is."""
        import ray

        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 0, **placed}
        made = ray.remote(kind).options(name=name, lifetime="detached", get_if_exists=True, **options)
        self._handles[name] = made.remote(*arguments)

    def _start_worker(self, number: int, order: ClusterOrder) -> None:
        import ray

        takes = needs(ray.cluster_resources(), order.cpus, order.gpus)
        placed: dict[str, object] = {
            "num_cpus": takes.cpus,
            "num_gpus": takes.gpus,
            "scheduling_strategy": "SPREAD",
        }
        self._make(WorkerHost, f"{WORKER}{number}", (msgspec.msgpack.encode(order.worker),), placed)

    def _kill(self, name: str) -> None:
        import ray

        ray.kill(self._handles.pop(name, None) or ray.get_actor(name), no_restart=True)


class _Store(SessionStore):
    """In an actor of its own. Each life of it has another name."""

    def __init__(self, keep_s: float, max_bytes: int) -> None:
        import ray

        life, again = secrets.token_hex(8), ray.get_runtime_context().was_current_actor_reconstructed
        super().__init__(keep_s, max_bytes, life)
        self._ledger = Ledger(life, SETTLE_S if again else 0.0)

    def ledger(self, data: bytes) -> bytes:
        return self._ledger.ask(data)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
