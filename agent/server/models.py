"""The models that are served, each by workers of its own, and whose sessions go to which.

Who names one gets that one. All others are shared out by `share`, exactly and not by lot, and keep the model that they
got. A name that nobody here has is as good as none: stock clients send those of another vendor's models.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from agent.config import ModelConfig
from agent.server.worker_process import WorkerUnusable
from agent.server.workers import NotDrained, WorkerPool, WorkerState

log = logging.getLogger("agogic.models")


@dataclass(frozen=True)
class Variant:
    """A model as configured, and the command that starts one of its workers. name "": the only one, which is called as
    its weights are."""

    name: str
    share: float
    config: ModelConfig
    command: tuple[str, ...]


@dataclass(eq=False)
class ServedModel:
    """A model with its workers. drawn: sessions that were meant for it because they named none; heir: who has its
    sessions since it is not served any more (`gone`)."""

    name: str
    share: float
    pool: WorkerPool
    drawn: int = 0
    heir: ServedModel | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def shown(self) -> str:
        """What its sessions are told."""
        return self.name or self.pool.model

    @property
    def current(self) -> ServedModel:
        """Itself, or who serves in its place."""
        return self if self.heir is None else self.heir.current


class Models:
    """`run` keeps the workers of all models alive until cancelled. `reread` says what is to be served by now."""

    def __init__(self, served: Sequence[ServedModel], reread: Callable[[], Sequence[Variant]] | None = None) -> None:
        """At least one is served."""
        self._served = list(served)
        self._reread = reread
        self._numbers = itertools.count()
        self._group: asyncio.TaskGroup | None = None
        self._tasks: dict[ServedModel, asyncio.Task[None]] = {}
        self._rolling = asyncio.Lock()
        self._changed = asyncio.Event()

    @classmethod
    def of(cls, variants: Sequence[Variant], reread: Callable[[], Sequence[Variant]] | None = None) -> Models:
        models = cls([], reread)
        models._served = [models._new(variant, variant.config.workers) for variant in variants]
        return models

    async def run(self) -> None:
        """Raises `WorkerUnusable`, as pools do."""
        try:
            async with asyncio.TaskGroup() as self._group:
                for model in self._served:
                    self._start(model)
                await asyncio.Event().wait()
        except* WorkerUnusable as unusable:
            raise unusable.exceptions[0] from None
        finally:
            self._group = None

    # --- for sessions ---

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(tuple(self._served))

    @property
    def default(self) -> ServedModel:
        return self._served[0]

    def has(self, name: str) -> bool:
        """Whether one is served by this name."""
        return any(model.name == name for model in self._served if model.name)

    def choose(self, name: str | None, allowed: Collection[str] = ()) -> list[ServedModel]:
        """Where to open a session that asks for this name, best first; the others only where that one cannot.
        `allowed`: the names that its key opens, empty = all."""
        named = next((model for model in self._served if model.name and model.name == name), None)
        if named is not None:
            return [named]
        open_to_it = [model for model in self._served if not model.name or not allowed or model.name in allowed]
        drawn = [model for model in open_to_it if model.share > 0] or open_to_it
        drawn.sort(key=lambda model: (model.drawn + 1) / model.share if model.share else 0.0)
        if drawn:
            drawn[0].drawn += 1
        return drawn

    # --- for whoever runs the server ---

    @property
    def ready(self) -> bool:
        """Whether any takes sessions."""
        return any(model.pool.ready for model in self._served)

    @property
    def why_not_ready(self) -> str:
        return next((model.pool.why_not_ready for model in self._served if not model.pool.ready), "")

    @property
    def slots(self) -> int:
        return sum(model.pool.slots for model in self._served)

    @property
    def leased(self) -> int:
        return sum(model.pool.leased for model in self._served)

    @property
    def capacity(self) -> int:
        return sum(model.pool.capacity for model in self._served)

    @property
    def busy(self) -> float:
        """Of the busiest worker, its share of the time."""
        return max(model.pool.busy for model in self._served)

    @property
    def restarts(self) -> int:
        return sum(model.pool.restarts for model in self._served)

    async def wait_ready(self) -> None:
        """Until all of them are."""
        for model in self:
            await model.pool.wait_ready()

    def close(self) -> None:
        """The server is about to go: no worker that goes as well gets a successor."""
        for model in self._served:
            model.pool.closing = True

    def workers(self) -> list[WorkerState]:
        return [state for model in self._served for state in model.pool.workers(model.name)]

    async def drain(self, number: int) -> None:
        """See `WorkerPool.drain`."""
        await self._pool_of(number).drain(number)

    async def replace(self, number: int) -> int:
        """See `WorkerPool.replace`."""
        return await self._pool_of(number).replace(number)

    async def roll(self) -> None:
        """Replaces every worker by one of what is configured now, one after the other. Models that are new are begun,
        those that are gone end, and their sessions go on with the first.

        Raises `NotReplaced` where a new worker does not become ready, and what `reread` raises. What has been replaced
        until then stays so, everything else goes on as it was.
        """
        async with self._rolling:
            if self._reread is None:
                for model in self:
                    await model.pool.roll()
                return
            variants = self._reread()
            for variant in variants:
                known = next((model for model in self._served if model.name == variant.name), None)
                if known is None:
                    await self._begin(variant)
                else:
                    await known.pool.roll(variant.command, variant.config.workers)
            named = {variant.name: variant for variant in variants}
            for model in self:
                if model.name not in named:
                    await self._end(model, heir=next(other for other in self._served if other.name in named))
            for model in self._served:
                model.share, model.drawn = named[model.name].share, 0

    async def _begin(self, variant: Variant) -> None:
        model = self._new(variant, workers=0)
        self._start(model)
        await model.pool.runs.wait()
        try:
            await model.pool.roll(variant.command, variant.config.workers)
        except BaseException:
            self._tasks.pop(model).cancel()
            raise
        self._served.append(model)

    async def _end(self, model: ServedModel, heir: ServedModel) -> None:
        self._served.remove(model)
        model.heir = heir
        model.gone.set()
        await model.pool.empty(lambda: heir.pool.has_room)
        self._tasks.pop(model).cancel()

    def _new(self, variant: Variant, workers: int) -> ServedModel:
        config = variant.config
        pool = WorkerPool(
            variant.command,
            workers,
            config.start_timeout_s,
            stuck_after_s=config.stuck_after_s,
            drain_s=config.drain_s,
            numbers=self._numbers,
        )
        return ServedModel(variant.name, variant.share, pool)

    def _start(self, model: ServedModel) -> None:
        assert self._group is not None, "they do not run"
        self._tasks[model] = self._group.create_task(model.pool.run())

    def _pool_of(self, number: int) -> WorkerPool:
        """Raises `NotDrained` where no worker has that number."""
        for model in self._served:
            if any(state.id == number for state in model.pool.workers()):
                return model.pool
        raise NotDrained(f"there is no worker {number}")
