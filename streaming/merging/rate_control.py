"""Causal control of the merger's frame rate: does the frame that just arrived start a new group?

Offline grouping (FlexiSLM section 3.4) cuts an utterance at the k lowest cosine similarities of neighbouring frames,
which needs the whole utterance. Here the decision falls as soon as the frame is there: cut when its similarity to the
frame before lies in the lowest `q` of those seen lately, where `q` is the requested rate over the base rate, raised or
lowered to repay the debt (groups owed minus groups made). The debt is bounded, hence so is the error of the realised
rate at every moment.

A decision is a few scalar operations on one stream, so rows are plain objects: one `RateState` per stream, no tensor.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

WINDOW_FRAMES = 600
REPAY_FRAMES = 75.0
"""Frames over which the controller plans to repay its debt."""
AHEAD_SHARE = 0.06
"""Groups made too early, at most, as a share of those due so far, but of no fewer than those due in `EARLY_FRAMES`."""
OVERDUE_SHARE = 0.01
"""The same for groups still owed: silence is cut at the requested rate, though nothing changes in it."""
LEAST_OVERDUE_GROUPS = 0.25
EARLY_FRAMES = 125
EARLY_AHEAD_SHARE, EARLY_AHEAD_FRAMES = 0.4, 250
"""In the beginning more may be made too early (speech after a pause is dense, and pauses follow), less and less."""
EARLY_OVERDUE_SHARE, EARLY_OVERDUE_FRAMES = 0.6, 90
"""In the beginning more may be owed (speech that has not begun needs no groups), less and less."""
SHORTEST_GROUP_FRAMES = 2
"""Where the requested rate allows it: in quick transitions each frame would become a group of its own, and the frames
that follow would have to share what is left."""
CARRY_GROUPS = 4.0
"""How much debt one utterance may hand on to the next, so that a conversation as a whole meets its rate."""


class RateError(ValueError):
    """A requested frame rate that cannot be met; the message says what is allowed."""


@dataclass(slots=True)
class RateState:
    """One stream's controller.

    owed_groups: groups due minus groups made in this utterance; carried_groups: what earlier utterances left unpaid;
    due_groups: groups due so far; open_frames: length of the open group in frames; recent: the last similarities in
    order of arrival; ranked: the same values sorted.
    """

    owed_groups: float = 0.0
    due_groups: float = 0.0
    carried_groups: float = 0.0
    open_frames: int = 0
    frames: int = 0
    groups: int = 0
    recent: deque[float] = field(default_factory=deque)
    ranked: list[float] = field(default_factory=list)


class RateController:
    """Decides group starts in a stream of frames at `base_hz`; groups hold at most `max_group` frames.

    prior: similarities typical of the encoder (a table of quantiles, in any order), which stand in for the window until
    enough frames have been seen. Memory and time per frame are bounded by `WINDOW_FRAMES`.
    """

    def __init__(self, base_hz: float, max_group: int, prior: Iterable[float] = ()) -> None:
        if base_hz <= 0 or max_group < 1:
            raise RateError(f"base rate {base_hz} Hz and groups of at most {max_group} frames: both must be positive")
        self.base_hz = base_hz
        self.max_group = max_group
        self.prior = tuple(float(value) for value in prior)

    def initial_state(self) -> RateState:
        return RateState(recent=deque(self.prior), ranked=sorted(self.prior))

    def next_utterance(self, state: RateState) -> RateState:
        """A state for the next utterance of the same conversation: keeps what was learned and what is still owed."""
        carried = max(-CARRY_GROUPS, min(CARRY_GROUPS, state.carried_groups + state.owed_groups))
        return replace(RateState(), carried_groups=carried, recent=deque(state.recent), ranked=list(state.ranked))

    def copy(self, state: RateState) -> RateState:
        """An independent copy, for a decision that may be taken back."""
        return replace(state, recent=deque(state.recent), ranked=list(state.ranked))

    def first(self, state: RateState, target_hz: float) -> bool:
        """Takes the first frame of an utterance, which always starts a group."""
        due = self._due(target_hz)
        state.due_groups, state.owed_groups = due, due - 1.0
        state.open_frames = state.frames = state.groups = 1
        return True

    def step(self, similarity: float, state: RateState, target_hz: float) -> bool:
        """Takes one frame; True if it starts a group. Updates `state` in place.

        similarity: cosine of this frame and the one before; a value that is not finite counts as 0.
        target_hz: may change from frame to frame. Raises RateError unless 0 < target_hz <= base_hz.
        """
        if state.frames == 0:
            return self.first(state, target_hz)
        due = self._due(target_hz)
        value = similarity if math.isfinite(similarity) else 0.0
        state.due_groups += due
        state.owed_groups += due
        state.frames += 1
        self._remember(value, state)
        starts = self._decide(value, state, due)
        if starts:
            state.owed_groups -= 1.0
            state.groups += 1
            state.open_frames = 1
        else:
            state.open_frames += 1
        return starts

    def whole(self, similarity: NDArray[np.floating], state: RateState, target_hz: float) -> NDArray[np.bool_]:
        """Group starts [T] of a whole utterance whose neighbours have similarity [T-1]; updates `state` in place."""
        starts = [self.first(state, target_hz)]
        starts += [self.step(value, state, target_hz) for value in similarity.tolist()]
        return np.array(starts, dtype=np.bool_)

    def _due(self, target_hz: float) -> float:
        if not 0.0 < target_hz <= self.base_hz:
            raise RateError(f"frame rate {target_hz} Hz is out of range: more than 0 and at most {self.base_hz:g} Hz")
        return target_hz / self.base_hz

    def _remember(self, value: float, state: RateState) -> None:
        insort(state.ranked, value)
        state.recent.append(value)
        if len(state.recent) > WINDOW_FRAMES:
            state.ranked.pop(bisect_left(state.ranked, state.recent.popleft()))

    def _decide(self, value: float, state: RateState, due: float) -> bool:
        if state.open_frames >= self.max_group:
            return True
        early_groups = due * EARLY_FRAMES
        ahead = max(
            AHEAD_SHARE * max(state.due_groups, early_groups),
            EARLY_AHEAD_SHARE * early_groups * (1.0 - state.frames / EARLY_AHEAD_FRAMES),
        )
        if state.owed_groups - 1.0 < -ahead:
            return False
        overdue = max(
            OVERDUE_SHARE * state.due_groups,
            EARLY_OVERDUE_SHARE * early_groups * (1.0 - state.frames / EARLY_OVERDUE_FRAMES),
            LEAST_OVERDUE_GROUPS,
        )
        if state.owed_groups >= overdue:
            return True
        if state.open_frames < SHORTEST_GROUP_FRAMES and due * SHORTEST_GROUP_FRAMES <= 1.0:
            return False
        quantile = due + (state.owed_groups + state.carried_groups) / REPAY_FRAMES
        # Middle rank: equal values (digital silence) count as neither low nor high.
        rank = (bisect_left(state.ranked, value) + bisect_right(state.ranked, value)) / 2
        return rank <= quantile * len(state.ranked)


def group_causal(
    similarity: NDArray[np.floating], target_hz: float, base_hz: float, max_group: int, prior: Iterable[float] = ()
) -> NDArray[np.bool_]:
    """Group starts of a whole utterance, exactly as the stream decides them.

    similarity: [T-1] cosine of frames t and t+1 (an empty array is one frame). Returns [T] bool, the first always True.
    """
    controller = RateController(base_hz, max_group, prior)
    return controller.whole(similarity, controller.initial_state(), target_hz)
