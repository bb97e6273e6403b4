"""No secret in a log line, and no log that others can fill."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from agent import log
from agent.clock import ManualClock
from agent.log import Redactor, Seldom


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the whole process logs, at its most talkative."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    log.configure("DEBUG", ["correct horse battery", "sk-short"], stream)
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.parametrize(
    ("line", "secret"),
    [
        ("Client protocols ['realtime', 'openai-insecure-api-key.abc.DEF-1']", "abc.DEF-1"),
        ("<Request headers={'Authorization': 'Bearer 9f8e7d6c'}>", "9f8e7d6c"),
        ("authorization: bearer tok_en", "tok_en"),
        ("GET /x?key=ek_abcdefghijklmnop1234", "abcdefghijklmnop1234"),
        ("call rtc_abcdefghijklmnop1234 ended", "abcdefghijklmnop1234"),
        ("sk-proj-0123456789abcdef", "0123456789abcdef"),
        ("the key correct horse battery came", "horse"),
    ],
)
def test_keys_are_hidden_wherever_they_stand(line: str, secret: str) -> None:
    redact = Redactor(["correct horse battery"])
    assert secret in line and secret not in redact(line) and "[hidden]" in redact(line)


def test_a_short_key_hides_itself_and_no_other_word() -> None:
    assert Redactor(["a"])("a cat sat at a table") == "[hidden] cat sat at [hidden] table"


def test_tracebacks_and_lines_of_libraries_are_redacted_too(lines: io.StringIO) -> None:
    try:
        raise ValueError("cannot use Bearer verysecretvalue")
    except ValueError:
        logging.getLogger("aiohttp.server").exception("Error handling request")
    logging.getLogger("elsewhere").debug("offered %r", ["openai-insecure-api-key.verysecretvalue"])
    written = lines.getvalue()
    assert "Traceback" in written and "offered" in written
    assert "verysecretvalue" not in written


def test_one_line_a_minute_of_a_kind_and_the_next_says_what_was_left_out(lines: io.StringIO) -> None:
    clock = ManualClock()
    handler = logging.getLogger().handlers[0]
    handler.filters[:] = [Seldom(60.0, clock.now_s)]
    noisy = logging.getLogger("noisy")
    for number in range(1000):
        noisy.warning("junk of %d bytes from %s", number, f"host{number}")
    noisy.warning("something else")
    noisy.info("wanted")
    noisy.info("wanted")
    clock.advance(60.0)
    noisy.warning("junk of %d bytes from %s", 7, "nearby")
    written = lines.getvalue()
    assert written.count("junk of") == 2
    assert "junk of 7 bytes from nearby (and 999 more like it since the last one shown)" in written
    assert written.count("something else") == 1
    assert written.count("wanted") == 2


def test_mistakes_are_told_apart_by_where_they_happened(lines: io.StringIO) -> None:
    noisy = logging.getLogger("noisy")

    def fail(kind: type[Exception]) -> None:
        try:
            raise kind("no")
        except Exception:
            noisy.exception("session sess_%s failed", object())

    for _ in range(5):
        fail(ValueError)
        fail(KeyError)
    assert lines.getvalue().count("Traceback") == 2


def test_the_memory_of_kinds_is_bounded() -> None:
    seldom = Seldom()
    for number in range(2000):
        name = f"logger {'x' * (number % 50)}{chr(33 + number % 90)}"
        seldom.filter(logging.LogRecord(name, logging.WARNING, "f", 1, "m", None, None))
    assert len(seldom._kinds) <= log._MAX_KINDS


def test_a_line_of_json_has_its_session_and_no_secret(lines: io.StringIO) -> None:
    stream = io.StringIO()
    log.configure("DEBUG", ["correct horse battery"], stream, log_format="json", process="service")
    session = "sess_0123456789ab000001"
    logging.getLogger("agogic.service").info("%s: opened over %s", session, "websocket")
    logging.getLogger("agogic.audit").info('{"key": "shop"}', extra={"session": session})
    try:
        raise ValueError('cannot use "correct horse battery"\nnor Bearer verysecretvalue')
    except ValueError:
        logging.getLogger("aiohttp.server").exception("Error\nhandling request")
    opened, audited, failed = (json.loads(line) for line in stream.getvalue().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", opened.pop("time"))
    assert opened == {
        "level": "info", "logger": "agogic.service", "process": "service", "session": session,
        "message": f"{session}: opened over websocket",
    }  # fmt: skip
    assert audited["session"] == session and audited["message"] == '{"key": "shop"}'
    assert "Traceback" in failed["exception"] and "session" not in failed
    assert "horse" not in str(failed) and "verysecretvalue" not in str(failed)
