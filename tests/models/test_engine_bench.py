"""What a recorded step costs in operations, held where it is."""

from __future__ import annotations

import pytest

from benchmarks.official import engine, flow_dials


@pytest.mark.parametrize("size", ["0.5B", "7B"])
def test_a_joint_step_is_one_graph_of_few_operations(size: engine.Size) -> None:
    for attention in engine._attentions():
        traces = engine._joint_step(size, attention)
        assert not any(trace.host_reads + trace.host_made for trace in traces)
        assert sum(len(trace.operations) for trace in traces) <= 700


def test_a_chunk_is_five_units_that_can_be_recorded() -> None:
    prepare, periods = engine._flow()
    assert len(periods) == 5
    assert not any(trace.host_reads + trace.host_made for trace in (prepare, *periods))
    assert max(len(trace.operations) for trace in periods) < 1200


def test_every_dial_costs_little_where_it_saves_little() -> None:
    report = flow_dials.run()
    rows = report["official"]
    assert isinstance(rows, list)
    for dial in ("steps", "guided_steps"):
        found = [row for row in rows if row["dial"] == dial]
        errors, work = [row["mel_error"] for row in found], [row["work_ratio"] for row in found]
        assert 0 < errors[0] < errors[-1] < 0.5
        assert 1 > work[0] > work[-1]
    embedded = report["embedded"]
    assert isinstance(embedded, list)
    errors = [row["mel_error"] for row in embedded]
    assert errors == sorted(errors, reverse=True) and errors[-1] > 0
