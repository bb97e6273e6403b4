"""`agogic bench roofline`: arithmetic on the released sizes, and on nothing else."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from agent.cli.bench import app
from benchmarks.official import roofline
from tests.support.report_shape import shaped

H200 = 4.3e12, 790e12


def test_steps_of_7b_are_the_weights_and_caches_that_they_read() -> None:
    report = roofline.run("7B", *H200)
    # 28 layers of 3584 x (2 x 3584 + 2 x 512) and 3 x 3584 x 18944, and the text head; 56 KiB a cached position.
    layer = 3584 * (2 * 3584 + 2 * 512) + 3 * 3584 * 18_944
    thinker_bytes = 2 * (28 * layer + 151_944 * 3584) + 1024 * 56 * 1024
    assert report["thinker_step_ms"] == pytest.approx(1e3 * thinker_bytes / H200[0], rel=0.01)
    # 20 layers of 1280 x (4 x 1280 + 3 x 5120) and the speech head, and what conditions them; 100 KiB a position.
    talker_bytes = 2 * (20 * 1280 * (4 * 1280 + 3 * 5120) + 32_771 * 1280) + 1024 * 100 * 1024
    assert report["talker_step_ms"] == pytest.approx(1e3 * talker_bytes / H200[0], rel=0.12)
    assert report["measured"] is False


def test_floors_fall_as_the_machine_gets_faster() -> None:
    slow, fast = roofline.run("0.5B", *H200), roofline.run("0.5B", 2 * H200[0], 2 * H200[1])
    for name in ("thinker_step_ms", "talker_step_ms", "first_audio_ms", "answer_real_time_factor"):
        assert float(str(fast[name])) == pytest.approx(float(str(slow[name])) / 2, rel=0.1)


def test_the_verb_prints_it() -> None:
    done = CliRunner().invoke(app, ["roofline", "--size", "0.5B", "--gigabytes-per-s", "1000", "--json"])
    assert done.exit_code == 0, done.output
    report = shaped("bench roofline", json.loads(done.stdout))
    assert report["bytes_per_s"] == 1e12 and report["thinker_step_ms"] == pytest.approx(1.0, abs=0.1)
