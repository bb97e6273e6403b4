"""The profile, the dial plan and the walk-throughs say what the code takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import msgspec
import pytest

from agent.config import ConfigError, ServerConfig, TelephonyConfig, check_exposure, load_config, parse_config
from agent.telephony import answers
from tests.support.service_process import ServiceProcess

ROOT = Path(__file__).parents[2]


def test_the_profile_names_every_key_with_its_default() -> None:
    raw = tomllib.loads((ROOT / "configs" / "telephony.toml").read_text())["telephony"]
    loaded = load_config(ROOT / "configs" / "telephony.toml").telephony

    def check(section: msgspec.Struct, written: dict[str, object], path: str) -> None:
        for field in msgspec.structs.fields(section):
            assert field.name in written, f"{path}.{field.name} is not in configs/telephony.toml"
            value = getattr(section, field.name)
            if isinstance(value, msgspec.Struct):
                inner = written[field.name]
                assert isinstance(inner, dict)
                check(value, inner, f"{path}.{field.name}")

    check(loaded, raw, "telephony")
    ports = ("audiosocket", "sip")
    same = msgspec.structs.replace(
        loaded, **{name: msgspec.structs.replace(getattr(loaded, name), port=None) for name in ports}
    )
    assert same == TelephonyConfig()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[telephony.sip]\nport = 5060\nhost = '0.0.0.0'\n", "telephony.sip.users"),
        ("[telephony.sip]\nport = 5060\nhost = '0.0.0.0'\ntrusted = ['192.0.2.1']\n", "telephony.sip.public_address"),
        ("[telephony.audiosocket]\nport = 1\nhost = '0.0.0.0'\naccept = 'any'\n", "registered"),
        ("[telephony.webhook]\nurl = 'http://h/'\n", "telephony.webhook.secret"),
    ],
)
def test_what_would_let_everybody_in_is_refused_at_the_start(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as error:
        check_exposure(parse_config(text))
    assert "\n" not in str(error.value)


def test_open_ports_that_are_guarded_start() -> None:
    guarded = "[telephony.sip]\nport = 5060\nhost = '192.0.2.1'\n[telephony.sip.users]\na = 'b'\n"
    check_exposure(parse_config(guarded))
    check_exposure(ServerConfig())


def test_a_port_in_use_is_one_line(service: ServiceProcess, tmp_path: Path) -> None:
    config = tmp_path / "agogic.toml"
    config.write_text(f"[telephony.sip]\nport = {service.telephony_ports['sip']}\n")
    command = [sys.executable, "-m", "agent.cli.main", "serve", "--port", "0", "--config", str(config)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "telephony.sip: cannot listen" in ended.stderr and "Traceback" not in ended.stderr


def test_the_script_of_the_dial_plan_registers_a_call(service: ServiceProcess) -> None:
    script = ROOT / "clients" / "telephony" / "calls.sh"
    ended = subprocess.run(
        [str(script)],
        env={"AGOGIC": service.base_url, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ended.returncode == 0, ended.stderr
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", ended.stdout)


def test_the_walk_through_shows_the_answer_that_is_given(service: ServiceProcess) -> None:
    shown = (ROOT / "clients" / "telephony" / "twilio.md").read_text()
    given = answers.twilio("wss://voice.example.com/telephony/twilio/TICKET").body
    for line in given.splitlines():
        assert line in shown
    status, body = service.get("/telephony/twilio/answer")
    assert status == 200
    (stream,) = ElementTree.fromstring(body.encode()).iter("Stream")
    assert re.fullmatch(rf"ws://127\.0\.0\.1:{service.port}/telephony/twilio/[\w-]{{32}}", stream.attrib["url"])


@pytest.mark.parametrize("provider", ["twilio", "telnyx", "plivo", "vonage", "exotel"])
def test_every_provider_is_told_where_its_stream_goes(service: ServiceProcess, provider: str) -> None:
    status, body = service.get(f"/telephony/{provider}/answer?uuid=u1")
    assert status == 200
    assert f"/telephony/{provider}/" in body
    if provider in ("vonage", "exotel"):
        json.loads(body)
    else:
        ElementTree.fromstring(body.encode())


def test_the_dial_plan_names_ports_of_the_profile() -> None:
    plan = (ROOT / "clients" / "telephony" / "extensions.conf").read_text()
    config = load_config(ROOT / "configs" / "telephony.toml").telephony
    assert f"127.0.0.1:{config.audiosocket.port}" in plan
    assert f"sip:agent@127.0.0.1:{config.sip.port}" in plan
