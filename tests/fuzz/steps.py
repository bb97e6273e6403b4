"""Conversations as lists of steps, for who wants the same one twice (`conversation.py` has more of them, once)."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from agent.dialogue.speaking import WorkerSlot
from tests.fuzz.client_events import EVENT
from tests.support.session_driver import READY, SessionDriver

STEP = st.one_of(
    st.tuples(st.just("event"), EVENT),
    st.tuples(st.just("event"), EVENT),
    st.tuples(st.just("raw"), st.binary(max_size=20)),
    st.tuples(st.just("speak"), st.sampled_from([0.06, 0.3, 0.6])),
    st.tuples(st.just("hush"), st.sampled_from([0.1, 0.7])),
    st.tuples(st.just("hush"), st.sampled_from([0.1, 0.7])),
    st.tuples(st.just("wait"), st.sampled_from([0.05, 0.5, 3.0, 7.0])),
    st.tuples(st.just("tongue"), st.sampled_from(["slow", "quick"])),
    st.tuples(st.just("worker"), st.sampled_from(["lost", "ready"])),
)


def _with_ids(event: dict[str, Any], driver: SessionDriver) -> dict[str, Any]:
    """ "last" stands for the newest item there is."""
    if event.get("item_id") == "last":
        added = driver.of("conversation.item.added")
        return {**event, "item_id": added[-1]["item"]["id"] if added else "item_a"}
    return event


def act(driver: SessionDriver, steps: list[tuple[str, Any]]) -> bool:
    """Takes these steps; whether there is a worker after them."""
    has_worker = True
    for kind, value in steps:
        if kind == "event":
            event = _with_ids(value, driver)
            caused = driver.send_raw(json.dumps(event))
            if event.get("type") not in ("input_audio_buffer.append", "response.create"):
                assert caused, f"no answer to {event}"
        elif kind == "raw":
            assert driver.send_raw(value)
        elif kind == "speak":
            driver.speak(value)
        elif kind == "hush":
            driver.hush(value)
        elif kind == "wait":
            driver.advance(value)
        elif kind == "tongue":
            # A slow worker has said nothing yet when the user goes on.
            driver.reply = None if value == "slow" else "Yes, of course."
        elif value == "lost" and has_worker:
            has_worker = False
            driver.do(driver.session.worker_lost())
        elif value == "ready" and not has_worker:
            has_worker = True
            driver.do(driver.session.worker_ready(WorkerSlot(2, READY)))
    return has_worker
