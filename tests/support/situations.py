"""Moments of a conversation that tests of the session begin at."""

from __future__ import annotations

from tests.support.session_driver import SessionDriver

PUSH_TO_TALK = {"audio": {"input": {"turn_detection": None}}}
JOINS_TURNS = {"x_agogic": {"joined_turns": True}}
LONG = " ".join(["word"] * 20)


def quiet() -> SessionDriver:
    return SessionDriver()


def hearing() -> SessionDriver:
    driver = SessionDriver()
    driver.speak(0.5)
    return driver


def asked() -> SessionDriver:
    """The turn is over, the worker has not answered yet."""
    driver = SessionDriver(reply=None)
    driver.speak(0.5)
    driver.hush(0.6)
    return driver


def speaking() -> SessionDriver:
    driver = SessionDriver(reply=LONG)
    driver.speak(0.5)
    driver.hush(1.2)
    assert driver.of("response.output_audio.delta")
    return driver


def done() -> SessionDriver:
    driver = SessionDriver(reply="Yes.")
    driver.speak(0.5)
    driver.hush(1.5)
    assert driver.of("response.done")
    return driver
