"""How a worker is emptied: each of its sessions leaves when the worker is at nothing for it.

Between two turns a session loses nothing by moving: the service owns the conversation, and tells the next worker when
there is something to hear or to answer. So nobody is moved within a turn before the time is up, and nobody at all as
long as there is no other place to go to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from agent.server.link import WorkerLink

_POLL_S = 0.05


async def drained(link: WorkerLink, room_elsewhere: Callable[[], bool], within_s: float) -> bool:
    """Lets no more sessions in and those that are there go. Returns when all have gone, which is true, or the time is
    up: for those that are left the worker is lost when its link is closed."""
    link.draining = True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while link.alive and link.leased:
                for holder in link.holders:
                    if holder.at_rest and room_elsewhere():
                        holder.move()
                await asyncio.sleep(_POLL_S)
    return not link.leased
