"""Prompts that begin alike hold the same pages, and nothing else changes by that, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor

from agent.wire import ContextItem
from tests.worker import tiny
from worker.listener import PipelineListener
from worker.parts import Conversation, Finished, Question, Sound, TextPiece
from worker.pipeline import Pipeline

INSTRUCTIONS = "You are kind to everybody who comes in, and never in a hurry. " * 8
PAGE = 64


def pipeline(*, shares: bool) -> Pipeline:
    model = tiny.pipeline(sessions=3)
    model.runner.shares = shares
    return model


def listened(
    model: Pipeline, instructions: str, history: tuple[ContextItem, ...] = (), output_hz: float = 12.5, seed: int = 0
) -> PipelineListener:
    listener = model.listen(Conversation(instructions, history), 12.5, output_hz)
    listener.feed(np.random.default_rng(seed).normal(0, 0.1, 12_000).astype(np.float32))
    listener.finish()
    return listener


def answered(
    model: Pipeline, listener: PipelineListener, instructions: str, history: tuple[ContextItem, ...], output_hz: float
) -> list[object]:
    """All that comes of the answer."""
    context = (*history, ContextItem("user", "", 0))
    speaker = model.respond(Question(Conversation(instructions, context), {0: listener}, 12.5, output_hz, True, 24))
    came: list[object] = []
    while True:
        for event in speaker.step():
            match event:
                case Finished(reason):
                    return [*came, reason]
                case TextPiece(text):
                    came.append(text)
                case Sound(pcm, tokens, words):
                    came += [pcm.tobytes(), tokens, words]


def held(model: Pipeline, listener: PipelineListener) -> tuple[list[int], list[int]]:
    """Pages of Thinker and Talker."""
    slot = listener.prefill._slot
    assert slot is not None
    return model.runner.thinker_cache._pages[slot], model.runner.talker_cache._pages[slot]


def check(model: Pipeline) -> None:
    model.runner.thinker_cache.check()
    model.runner.talker_cache.check()


def test_sessions_with_the_same_instructions_hold_the_same_pages() -> None:
    model = pipeline(shares=True)
    first, second = listened(model, INSTRUCTIONS, seed=1), listened(model, INSTRUCTIONS, seed=2)
    other = listened(model, "Be brief. " + INSTRUCTIONS)
    full = len(first.prefill._ids) // PAGE
    assert full >= 2
    for mine, theirs, foreign in zip(held(model, first), held(model, second), held(model, other), strict=True):
        assert mine[:full] == theirs[:full] and not set(mine[full:]) & set(theirs[full:])
        assert not set(mine) & set(foreign)
    check(model)
    first.close()
    answered(model, second, INSTRUCTIONS, (), 12.5)
    check(model)


def test_the_next_turn_prefills_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """At another rate too: what the Thinker made does not depend on it."""
    model = pipeline(shares=True)
    thinker, talker = model.networks.slm.thinker, model.networks.slm.talker_model
    counted = {"thinker": 0, "talker": 0}
    for name, network in (("thinker", thinker), ("talker", talker)):
        prefill = network.prefill

        def watch(new: Tensor, *args: object, name: str = name, prefill: object = prefill) -> object:
            counted[name] += len(new)
            return prefill(new, *args)  # type: ignore[operator]

        monkeypatch.setattr(network, "prefill", watch)

    def prefilled(output_hz: float) -> dict[str, int]:
        counted.update(thinker=0, talker=0)
        listener = model.listen(Conversation(INSTRUCTIONS, ()), 12.5, output_hz)
        model.open([listener])
        listener.close()
        return dict(counted)

    whole = prefilled(12.5)
    rest = whole["thinker"] % PAGE
    assert whole["thinker"] == whole["talker"] > 2 * PAGE and rest
    assert prefilled(12.5) == {"thinker": rest, "talker": rest}
    assert prefilled(8.0) == {"thinker": rest, "talker": whole["talker"]}
    assert prefilled(12.5) == {"thinker": rest, "talker": rest}, "that of the first rate is there still"
    check(model)


def test_answers_are_the_same_bit_for_bit() -> None:
    """Turns of two conversations, at rates that change, with and without shared pages."""
    told: list[list[object]] = []
    for shares in (False, True):
        model, came = pipeline(shares=shares), []
        histories: list[tuple[ContextItem, ...]] = [(), ()]
        for turn, output_hz in enumerate((12.5, 6.25, 12.5)):
            for number, history in enumerate(histories):
                listener = listened(model, INSTRUCTIONS, history, 12.5, seed=turn)
                came.append(answered(model, listener, INSTRUCTIONS, history, output_hz))
                listener.close()
                histories[number] = (*history, ContextItem("assistant", f"Certainly, number {number}. " * (turn + 4)))
        check(model)
        told.append(came)
    assert told[0] == told[1]


def test_pages_that_nobody_holds_make_room_for_others() -> None:
    model = pipeline(shares=True)
    for number in range(40):
        listened(model, f"{number}. " + INSTRUCTIONS * 3, seed=number).close()
    pool = model.runner.thinker_cache.pool
    assert pool.available == pool.pages - 1, "those that are kept can be taken"
    known = model.runner._shared_thinker._hidden
    assert known and all(pool.find(name) is not None for name in known)
    check(model)
