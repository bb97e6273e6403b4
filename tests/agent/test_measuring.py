"""`agogic bench` and `agogic eval` as commands: reports on stdout, what a user did wrong in one line on stderr."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from agent.cli.main import build
from agent.cli.measuring import print_report


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "turn", "--clips", "nowhere"], "nowhere holds no recordings; give a folder"),
        (["bench", "callers", "--model", "nowhere"], "nowhere is no model: give 'embedded'"),
        (["bench", "golden", "--golden", "nowhere"], "nowhere"),
        (["eval", "barista", "--clips", "nowhere", "--labels", "nowhere"], "give the labels.json of the clips"),
        (["eval", "voice", "--model", "nowhere"], "nowhere is no model: give 'embedded'"),
    ],
)
def test_what_cannot_be_measured_is_one_line(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(build(arguments[0]), arguments)
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"agogic {arguments[0]}: ") and said in lines[0]
    assert not result.stdout


def test_report_is_one_json_object_or_a_line_for_each_figure(capsys: pytest.CaptureFixture[str]) -> None:
    report: dict[str, object] = {"share": 0.5, "rows": [1, 2]}
    print_report(report, True)
    assert json.loads(capsys.readouterr().out) == report
    print_report(report, False)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["share", "0.5"], ["rows", "[1,", "2]"]]
    print_report(report, False, lists=False)
    assert capsys.readouterr().out.split() == ["share", "0.5"]
