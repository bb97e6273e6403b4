"""What a recorded step must not do is found without a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.paged_attention import BackendError
from kernels.recorder import Strict
from kernels.step_runner import (
    CHOICE,
    LARGEST,
    EagerSteps,
    InPlace,
    RecordedSteps,
    buckets_for,
    filled_up,
    in_buckets,
    steps_name,
)
from kernels.step_trace import StrictError, traced

CPU = torch.device("cpu")
TABLE = torch.arange(20.0).view(5, 4)


def good(rows: Tensor, width: int, in_place: InPlace | None) -> None:
    x = TABLE.index_select(0, rows)
    TABLE.index_copy_(0, rows, torch.where(x.sum(-1, keepdim=True) > 5, x * 0.5, x + 1))


def reads(rows: Tensor, width: int, in_place: InPlace | None) -> None:
    if TABLE[rows[0], 0] > 3:
        TABLE.add_(1)


def takes_item(rows: Tensor, width: int, in_place: InPlace | None) -> None:
    TABLE.add_(rows.sum().item())


def counts(rows: Tensor, width: int, in_place: InPlace | None) -> None:
    TABLE[rows].nonzero()


def masks(rows: Tensor, width: int, in_place: InPlace | None) -> None:
    TABLE[TABLE > 3]


def fills_masked(rows: Tensor, width: int, in_place: InPlace | None) -> None:
    TABLE[TABLE > 3] = TABLE[0, :1]


def makes(rows: Tensor, width: int, in_place: InPlace | None) -> None:
    TABLE.add_(torch.tensor([1.0, 2.0, 3.0, 4.0]))


def repeats(rows: Tensor, width: int, in_place: InPlace | None) -> None:
    TABLE[:2].repeat_interleave(rows, dim=0)


@pytest.mark.parametrize("bad", [reads, takes_item, counts, masks, fills_masked, makes, repeats])
def test_host_reads_and_host_made_tensors_are_caught(bad: Callable[..., None]) -> None:
    with pytest.raises(StrictError, match=r"aten\..* (reads on the host|makes a tensor)"):
        RecordedSteps(Strict(), (2,), 4, CPU).run("bad", bad, [0, 1], 1)


def test_a_step_by_address_and_value_alone_runs_twice() -> None:
    strict = Strict()
    steps = RecordedSteps(strict, (1, 2, 4), 4, CPU)
    for slots in ([0], [1], [2, 3], [0, 1, 2], [3, 2, 1, 0], [1, 2, 0]):
        steps.run("good", good, slots, 1)
    assert len(strict.traces) == 3
    assert all(not trace.host_reads + trace.host_made for trace in strict.traces.values())
    kinds = {tuple(trace.operations) for trace in strict.traces.values()}
    assert len(kinds) == 1, "of one bucket and another the same operations"


def test_a_step_that_goes_another_way_for_other_contents_is_caught() -> None:
    contents = [3.0, 4.0]

    def work(rows: Tensor, width: int, in_place: InPlace | None) -> None:
        TABLE.mul_(contents.pop())

    def branching(rows: Tensor, width: int, in_place: InPlace | None) -> None:
        TABLE.abs_() if contents.pop() > 3 else TABLE.neg_()

    def elsewhere(rows: Tensor, width: int, in_place: InPlace | None) -> None:
        TABLE.mul_(tables.pop())

    tables = [torch.ones(4), torch.ones(4)]
    for bad in (work, branching, elsewhere):
        contents[:] = [3.0, 4.0]
        steps = RecordedSteps(Strict(), (1,), 4, CPU)
        steps.run("bad", bad, [0], 1)
        with pytest.raises(StrictError, match="hangs on the contents"):
            steps.run("bad", bad, [1], 1)


def test_views_are_no_operations() -> None:
    x = torch.randn(3, 8)
    with torch.inference_mode():
        trace = traced(lambda: torch.relu(x.view(3, 2, 4).transpose(1, 2)[:, :3].chunk(2)[0]).add_(1))
    assert trace.operations == ["aten.relu.default", "aten.add_.Tensor"]


def test_rows_are_filled_up_to_the_next_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LARGEST, raising=False)
    assert buckets_for(1) == (1,) and buckets_for(5) == (1, 2, 4, 8) and buckets_for(500)[-1] == 64
    assert filled_up([7, 3, 5], (1, 2, 4), 9) == [7, 3, 5, 9]
    assert [list(part) for part in in_buckets(range(5), (1, 2))] == [[0, 1], [2, 3], [4]]
    seen: list[list[int]] = []
    EagerSteps((1, 4), 9, CPU).run("look", lambda rows, width, where: seen.append(rows.tolist()), [1, 2], 1)
    assert seen == [[1, 2, 9, 9]]
    monkeypatch.setenv(LARGEST, "3")
    assert buckets_for(8) == (1, 2, 3)


def test_what_cannot_be_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHOICE, raising=False)
    assert steps_name(CPU) == "eager" and steps_name(torch.device("cuda")) == "graphs"
    monkeypatch.setenv(CHOICE, "fast")
    with pytest.raises(BackendError, match="AGOGIC_STEPS=fast is no way to run a step; take auto, eager"):
        steps_name(CPU)
    with pytest.raises(BackendError, match="needs a GPU"):
        steps_name(CPU, "graphs")
    monkeypatch.setenv(LARGEST, "many")
    with pytest.raises(BackendError, match="take 1 to 256"):
        buckets_for(4)
