"""The command line itself: its version, completion, errors, and what the doctor finds before `serve` would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.cli.doctor import doctor
from agent.cli.main import build
from agent.cli.measuring import Progress
from agent.config import ConfigError, parse_config


def agogic(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | environment)


def test_the_version_is_told() -> None:
    assert re.fullmatch(r"agogic \d+\.\d+\.\d+\n", agogic("--version").stdout)


@pytest.mark.parametrize(("typed", "offered"), [("agogic ", "doctor"), ("agogic serve --po", "--port")])
def test_the_shell_completes_verbs_and_options(typed: str, offered: str) -> None:
    done = agogic(_AGOGIC_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=typed)
    assert offered in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[session]\noutput_frame_rate = "fast"', 'allowed is "auto" or a number from 4 to 12.5'),
        ("[http]\nport = 99999", "allowed is a whole number from 0 to 65535"),
        ('[model]\nlatency = "none"', 'allowed is "usual" or "low"'),
        ('[session]\nopening = ""', "a text that is not empty"),
        ("[turn]\nthreshold = 2", "a number from 0 to 1"),
    ],
)
def test_an_error_of_the_configuration_names_what_is_allowed(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_config(text)


def findings(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, dict[str, str]]:
    monkeypatch.setattr("agent.cli.doctor._model", lambda spec, sessions: [])
    import typer

    app = typer.Typer()
    app.command()(doctor)
    result = CliRunner().invoke(app, [*arguments, "--json"])
    return {finding["what"]: finding for finding in json.loads(result.stdout)["findings"]}


def test_the_doctor_checks_what_serve_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGOGIC_API_KEY", raising=False)
    assert findings(monkeypatch)["configuration"]["verdict"] == "ok"
    open_to_all = findings(monkeypatch, "--host", "0.0.0.0")["configuration"]
    assert open_to_all["verdict"] == "missing" and "AGOGIC_API_KEY" in open_to_all["detail"]
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[http]\nprot = 1")
    assert "unknown key `http.prot`" in findings(monkeypatch, "--config", str(wrong))["configuration"]["detail"]
    nowhere = tmp_path / "nowhere.toml"
    nowhere.write_text('[http]\nhost = "203.0.113.7"\napi_keys = ["k"]')
    assert "cannot be listened on" in findings(monkeypatch, "--config", str(nowhere))["port"]["detail"]


def test_progress_says_how_long_the_rest_takes(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress(1, 3)
    progress(3, 3)
    shown = capsys.readouterr().err
    assert re.search(r"1 of 3 turns, about \d+ s left", shown) and shown.endswith("\n")


def test_every_verb_that_is_listed_exists() -> None:
    verbs = {command.name for command in build(None).registered_commands}
    assert {"serve", "talk", "chat", "doctor", "codec", "eval", "bench", "train"} <= verbs
