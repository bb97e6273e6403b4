"""The end-of-turn head: a stream like any other, and what its certainty means."""

from __future__ import annotations

import torch

from streaming.hearing.turn_end import TurnEnd, TurnEndConfig
from streaming.layers.module import join_rows, split_rows


def head(pauses: tuple[float, ...] = ()) -> TurnEnd:
    torch.manual_seed(0)
    return TurnEnd(TurnEndConfig(frame_size=16, hidden=8, pauses=pauses)).requires_grad_(False)


def test_pieces_of_any_size_give_what_the_whole_gives() -> None:
    network, frames = head(), torch.randn(2, 61, 16)
    state, parts = network.initial_state(2), []
    for piece in frames.split([1, 0, 8, 3, 24, 25], dim=1):
        logits, state = network.step(piece, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), network(frames), rtol=1e-4, atol=1e-5)


def test_a_row_in_company_gives_what_it_gives_alone() -> None:
    network, frames = head(), torch.randn(3, 8, 16)
    states = [network.step(torch.randn(1, 5 + row, 16), network.initial_state(1))[1] for row in range(3)]
    together, after = network.step(frames, join_rows(states))
    for row, state in enumerate(states):
        alone, later = network.step(frames[row : row + 1], state)
        torch.testing.assert_close(together[row : row + 1], alone)
        torch.testing.assert_close(split_rows(after, 3)[row].means, later.means)


def test_certainty_is_the_share_of_pauses_that_look_less_finished() -> None:
    pauses = torch.randn(1000).sort().values
    network = head(tuple(float(q) for q in torch.quantile(pauses, torch.linspace(0, 1, 201))))
    certainty = network.certainty(pauses)
    torch.testing.assert_close(certainty, torch.linspace(0, 1, 1000), rtol=0, atol=0.01)
    assert network.certainty(torch.tensor([-50.0, 50.0])).tolist() == [0.0, 1.0]
