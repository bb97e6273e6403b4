"""SIP with others at the other end: sipp, baresip, OpenAI's SDK, our own phone, another agogic."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import numpy as np
import openai
import pytest
import soundfile
from aiohttp import web
from sipmessage import URI

from agent.telephony.phone import Phone, PhoneReport
from agent.telephony.sip.call import Credentials
from tests.support.service_process import ROOT, ServiceProcess, fake_worker_command
from tests.support.speech import order
from tests.telephony.conftest import telephony_port
from tests.telephony.test_stream_calls import SideBand

SIPP = Path(__file__).parent / "sipp"
SECRET = "whsec_" + "c2VjcmV0LW9mLXRoZS13ZWJob29r"
SPEECH = order(16_000).astype(np.int16)
needs_sipp = pytest.mark.skipif(shutil.which("sipp") is None, reason="sipp is not installed")
needs_baresip = pytest.mark.skipif(shutil.which("baresip") is None, reason="baresip is not installed")


async def settled(service: ServiceProcess) -> None:
    """Until no place is taken any more."""
    for _ in range(100):
        if json.loads(service.get("/readyz")[1])["leased"] == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("a place is still taken")


async def sipp(service: ServiceProcess, folder: Path, *options: str) -> None:
    """Runs it until its calls are over; every unexpected message is a failure."""
    target = f"127.0.0.1:{telephony_port(service, 'sip')}"
    command = ["sipp", target, "-i", "127.0.0.1", "-nostdin", "-timeout", "30", "-trace_err", *options]
    process = await asyncio.create_subprocess_exec(
        *command, "-error_file", "errors.log", cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    log = folder / "errors.log"
    errors = log.read_text("utf-8", "replace") if log.exists() else ""
    assert process.returncode == 0, f"{errors}\n{output.decode(errors='replace')[-1500:]}"


def target_of(service: ServiceProcess, transport: str = "udp") -> URI:
    return URI.parse(f"sip:agent@127.0.0.1:{telephony_port(service, 'sip')};transport={transport}")


# --- sipp ---


@needs_sipp
async def test_twenty_calls_at_once_from_invite_to_bye(service: ServiceProcess, tmp_path: Path) -> None:
    await sipp(service, tmp_path, "-sn", "uac", "-m", "20", "-l", "20", "-r", "20", "-d", "1500")
    await settled(service)


@needs_sipp
async def test_calls_over_tcp(service: ServiceProcess, tmp_path: Path) -> None:
    await sipp(service, tmp_path, "-sn", "uac", "-t", "t1", "-m", "3", "-d", "300")
    await settled(service)


@needs_sipp
async def test_hold_resume_and_another_codec(service: ServiceProcess, tmp_path: Path) -> None:
    await sipp(service, tmp_path, "-sf", str(SIPP / "reinvite.xml"), "-m", "3", "-l", "3")
    await settled(service)


# --- our own phone ---


@pytest.mark.parametrize(("codec", "transport"), [("PCMA", "udp"), ("opus", "tcp")])
async def test_a_phone_is_greeted_and_answered(service: ServiceProcess, codec: str, transport: str) -> None:
    phone = Phone(SPEECH, codecs=(codec,))  # type: ignore[arg-type]
    report = await phone.call(target_of(service, transport), seconds=4.0)
    assert (report.status, report.codec) == (200, codec)
    assert report.heard is not None and report.packets_lost == 0
    loud = np.abs(report.heard.astype(int)) > 1000
    assert loud.sum() > 1.0 * 16_000 * 0.5
    await settled(service)


def test_dial_plays_a_recording_and_records_the_reply(service: ServiceProcess, tmp_path: Path) -> None:
    question, reply = tmp_path / "question.wav", tmp_path / "reply.wav"
    soundfile.write(question, SPEECH, 16_000, subtype="PCM_16")
    command = [sys.executable, "-m", "agent.cli.main", "dial", str(target_of(service)), "--wav", str(question)]
    command += ["-o", str(reply), "--seconds", "3", "--json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["codec"] == "G722" and report["packets_received"] > 100
    sound, rate_hz = soundfile.read(reply)
    assert rate_hz == 16_000 and sound.size / rate_hz == pytest.approx(report["heard_s"], abs=0.01)


@pytest.mark.parametrize(
    ("target", "said"),
    [("nobody", "write sip:NAME@HOST"), ("sip:x@127.0.0.1:1", "nobody answered|cannot be called|did not take")],
)
def test_dial_says_what_is_wrong(target: str, said: str, tmp_path: Path) -> None:
    if target.endswith(":1"):
        target += ";transport=tcp"
    wav = tmp_path / "q.wav"
    soundfile.write(wav, SPEECH[:1600], 16_000)
    command = [sys.executable, "-m", "agent.cli.main", "dial", target, "--wav", str(wav)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1 and any(part in ended.stderr for part in said.split("|"))


# --- baresip ---


BARESIP = """
sip_listen 127.0.0.1:0
net_interface 127.0.0.1
audio_source aufile,{folder}/in.wav
audio_player aufile,{folder}/out.wav
audio_alert aufile,{folder}/out.wav
ausrc_srate 16000
auplay_srate 16000
module_path {modules}
module g711.so
module g722.so
module aufile.so
module sndfile.so
module_app account.so
module_app menu.so
snd_path {folder}
"""


def baresip_modules() -> Path:
    return next(path.parent for root in ("/usr/lib", "/usr/local/lib") for path in Path(root).rglob("g722.so"))


def recording_of(folder: Path) -> tuple[np.ndarray, int]:
    """What baresip heard."""
    (file,) = folder.glob("dump-*-dec.wav")
    sound, rate_hz = soundfile.read(file)
    return sound, rate_hz


def baresip(service: ServiceProcess, folder: Path, seconds: int) -> asyncio.Task[bytes]:
    """Calls, says the order, and hangs up after `seconds`; what it wrote."""
    (folder / "config").write_text(BARESIP.format(folder=folder, modules=baresip_modules()))
    (folder / "accounts").write_text("<sip:phone@127.0.0.1>;regint=0;audio_codecs=G722/16000/1,PCMU/8000/1\n")
    soundfile.write(folder / "in.wav", order(16_000, before_s=1.0, after_s=12.0), 16_000, subtype="PCM_16")
    command = ["baresip", "-f", str(folder), "-e", f"/dial {target_of(service)}", "-t", str(seconds)]

    async def run() -> bytes:
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output, _ = await asyncio.wait_for(process.communicate(), 60)
        return output

    return asyncio.create_task(run())


@needs_baresip
async def test_baresip_orders_and_its_recording_holds_the_reply(service: ServiceProcess, tmp_path: Path) -> None:
    output = await baresip(service, tmp_path, 8)
    assert b"Call established" in output, output.decode(errors="replace")[-1500:]
    sound, rate_hz = recording_of(tmp_path)
    assert rate_hz == 16_000
    level = [np.sqrt(np.mean(sound[at : at + 3200] ** 2)) for at in range(0, sound.size - 3200, 3200)]
    loud = [value > 0.03 for value in level]
    # The greeting, the silence while the order is heard, and the answer to it.
    changes = sum(a != b for a, b in itertools.pairwise(loud))
    assert loud.count(True) > 10 and changes >= 2, level
    await settled(service)


# --- who decides: webhooks, passwords, another agogic ---


class Application:
    """Takes webhooks, checks them as OpenAI's SDK does, and remembers them."""

    def __init__(self) -> None:
        self.client = openai.AsyncOpenAI(api_key="any", webhook_secret=SECRET, base_url="http://unset/v1")
        self.incoming: asyncio.Queue[str] = asyncio.Queue()
        self.headers: dict[str, str] = {}

    async def take(self, request: web.Request) -> web.Response:
        event = self.client.webhooks.unwrap(await request.text(), dict(request.headers))
        assert event.type == "realtime.call.incoming"
        self.headers = {header.name: header.value for header in event.data.sip_headers}
        await self.incoming.put(event.data.call_id)
        return web.Response()


@asynccontextmanager
async def application(port: int) -> AsyncIterator[Application]:
    taker = Application()
    app = web.Application()
    app.router.add_post("/hook", taker.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield taker
    await runner.cleanup()


@pytest.fixture(scope="module")
def hook_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, hook_port: int) -> Iterator[ServiceProcess]:
    """Asks for a password, and an application decides about every call."""
    config = Path(tmp_path_factory.mktemp("guarded")) / "agogic.toml"
    config.write_text(
        "[telephony.sip]\nport = 0\n[telephony.sip.users]\nphone = 'secret'\n"
        f"[telephony.webhook]\nurl = 'http://127.0.0.1:{hook_port}/hook'\nsecret = '{SECRET}'\ndecide_within_s = 4\n"
    )
    with ServiceProcess(fake_worker_command("--slots", "8"), config=config, telephony_lines=1) as process:
        yield process


def calling(service: ServiceProcess, seconds: float = 4.0) -> asyncio.Task[PhoneReport]:
    phone = Phone(SPEECH, codecs=("PCMU",))
    return asyncio.create_task(
        phone.call(target_of(service), seconds=seconds, credentials=Credentials("phone", "secret"))
    )


async def test_an_application_written_for_openai_accepts_watches_and_hangs_up(
    guarded: ServiceProcess, hook_port: int
) -> None:
    async with application(hook_port) as app:
        call = calling(guarded, 20.0)
        call_id = await asyncio.wait_for(app.incoming.get(), 10)
        assert call_id.startswith("rtc_") and "phone@" in app.headers["From"]
        assert not any("authorization" in name.lower() for name in app.headers)
        client = openai.AsyncOpenAI(api_key="any", base_url=f"{guarded.base_url}/v1")
        await client.realtime.calls.accept(call_id, type="realtime", instructions="Be brief.")
        async with SideBand(guarded, call_id) as band:
            created = await band.until("session.created")
            assert created["session"]["instructions"] == "Be brief."
            await band.until("conversation.item.input_audio_transcription.completed")
            await client.realtime.calls.hangup(call_id)
        report = await asyncio.wait_for(call, 10)
        assert report.status == 200 and report.reason == "the other side hung up"
        await settled(guarded)


@needs_baresip
@pytest.mark.slow
async def test_an_outside_recogniser_understands_what_baresip_recorded_of_the_barista(
    hook_port: int, tmp_path: Path
) -> None:
    """A recorded order by telephone to the embedded model; its reply is heard by somebody who is no part of it."""
    from training.judge import Judge, spoken_words

    config = tmp_path / "agogic.toml"
    hook = f"[telephony.webhook]\nurl = 'http://127.0.0.1:{hook_port}/hook'\nsecret = '{SECRET}'\n"
    config.write_text(f"[telephony]\ngreet = false\n[telephony.sip]\nport = 0\n{hook}")
    with ServiceProcess(config=config, telephony_lines=1, ready_timeout_s=120) as barista:
        async with application(hook_port) as app:
            calling = baresip(barista, tmp_path, 14)
            call_id = await asyncio.wait_for(app.incoming.get(), 20)
            client = openai.AsyncOpenAI(api_key="any", base_url=f"{barista.base_url}/v1")
            await client.realtime.calls.accept(call_id, type="realtime")
            async with SideBand(barista, call_id) as band:
                done = await band.until("response.done", timeout_s=40)
            await calling
    said = done["response"]["output"][0]["content"][0]["transcript"]
    assert said
    sound, rate_hz = recording_of(tmp_path)
    loud = np.flatnonzero(np.abs(sound) > 0.02)
    heard = sound[loud[0] : loud[-1]].astype(np.float32)
    understood = spoken_words(Judge().hear(heard, rate_hz))
    # The judge breaks words that it does not know into several that it does: what counts is what it got.
    found = [word for word in spoken_words(said) if word in understood]
    assert len(found) >= len(spoken_words(said)) / 2, (said, understood)


async def test_an_application_refuses_a_call(guarded: ServiceProcess, hook_port: int) -> None:
    async with application(hook_port) as app:
        call = calling(guarded)
        call_id = await asyncio.wait_for(app.incoming.get(), 10)
        client = openai.AsyncOpenAI(api_key="any", base_url=f"{guarded.base_url}/v1")
        await client.realtime.calls.reject(call_id, status_code=486)
        assert (await asyncio.wait_for(call, 10)).status == 486
        with pytest.raises(openai.NotFoundError):
            await client.realtime.calls.accept(call_id, type="realtime")
        with pytest.raises(openai.NotFoundError):
            await client.realtime.calls.refer(call_id, target_uri="tel:+14155550100")


async def test_bad_decisions_are_refused_and_the_call_goes_on_ringing(guarded: ServiceProcess, hook_port: int) -> None:
    async with application(hook_port) as app:
        call = calling(guarded, 1.0)
        call_id = await asyncio.wait_for(app.incoming.get(), 10)
        base = f"{guarded.base_url}/v1/realtime/calls/{call_id}"
        async with aiohttp.ClientSession() as http:
            for verb, body in (
                ("accept", "{"),
                ("accept", '{"audio": {"input": {"format": {"type": "audio/opus"}}}}'),
                ("reject", '{"status_code": 200}'),
                ("refer", '{"target_uri": "http://example.com"}'),
                ("refer", "{}"),
            ):
                answer = await http.post(f"{base}/{verb}", data=body)
                assert answer.status == 400 and (await answer.json())["error"]["message"]
            assert (await http.post(f"{base}/refer", json={"target_uri": "tel:+1"})).status == 409
            assert (await http.post(f"{base}/accept", json={"type": "realtime"})).status == 200
        assert (await asyncio.wait_for(call, 10)).status == 200


async def test_nobody_decides_and_the_caller_hears_480(guarded: ServiceProcess, hook_port: int) -> None:
    async with application(hook_port) as app:
        call = calling(guarded)
        await asyncio.wait_for(app.incoming.get(), 10)
        assert (await asyncio.wait_for(call, 15)).status == 480
    await settled(guarded)


@needs_sipp
async def test_sipp_gives_up_while_it_rings(hook_port: int, tmp_path: Path) -> None:
    config = tmp_path / "agogic.toml"
    hook = f"[telephony.webhook]\nurl = 'http://127.0.0.1:{hook_port}/hook'\nsecret = '{SECRET}'\n"
    config.write_text(f"[telephony.sip]\nport = 0\n{hook}")
    with ServiceProcess(fake_worker_command(), config=config, telephony_lines=1) as ringing:
        async with application(hook_port):
            await sipp(ringing, tmp_path, "-sf", str(SIPP / "cancel.xml"), "-m", "3", "-l", "3")
        await settled(ringing)


@needs_sipp
async def test_sipp_with_a_wrong_password_is_refused(guarded: ServiceProcess, tmp_path: Path) -> None:
    await sipp(guarded, tmp_path, "-sf", str(SIPP / "password.xml"), "-m", "3", "-l", "3")
    await settled(guarded)


async def test_two_agogics_call_each_other(service: ServiceProcess, tmp_path: Path) -> None:
    """One is told to dial the other; both agents are in the call until one side hangs up."""
    config = tmp_path / "agogic.toml"
    config.write_text("[telephony.sip]\nport = 0\n")
    with ServiceProcess(fake_worker_command(), config=config, telephony_lines=1) as caller:
        async with aiohttp.ClientSession() as http:
            url = f"{caller.base_url}/telephony/sip/calls"
            answer = await http.post(url, json={"to": str(target_of(service))})
            assert answer.status == 201, await answer.text()
            call_id = (await answer.json())["call_id"]
            async with SideBand(caller, call_id) as band:
                await band.until("response.done")
                for side in (caller, service):
                    assert json.loads(side.get("/readyz")[1])["leased"] == 1
                assert (await http.post(f"{caller.base_url}/v1/realtime/calls/{call_id}/hangup")).status == 200
            await settled(service)
            await settled(caller)
