"""The corpora of the fuzzers, some bending of them, and a few seconds of the real thing where it is installed."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import CORPUS, TARGETS

ROOT = Path(__file__).resolve().parents[2]
BENT_EACH = 60


def corpus(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_read_or_refused(name: str) -> None:
    inputs = corpus(name)
    assert len(inputs) >= 4
    for data in inputs:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_cut_swapped_or_doubled_is_read_or_refused(name: str) -> None:
    chance = random.Random(1)
    inputs = corpus(name)
    for _ in range(BENT_EACH):
        TARGETS[name](bent(chance, chance.choice(inputs), chance.choice(inputs)))


def bent(chance: random.Random, data: bytes, other: bytes) -> bytes:
    at, end = sorted((chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)))
    kind = chance.randrange(5)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[end:]
    if kind == 2:
        return data[:end] + data[at:]
    if kind == 3:
        return data[:at] + other[chance.randrange(len(other) + 1) :]
    changed = bytearray(data)
    for _ in range(min(len(changed), chance.randrange(1, 8))):
        changed[chance.randrange(len(changed))] = chance.choice((0, 255, chance.randrange(256)))
    return bytes(changed)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="the extra 'fuzz' is not installed")
def test_a_few_seconds_guided_by_coverage_find_nothing() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "wire", "codes", "--seconds", "3", "--seed", "7"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert ended.stderr.count("stat::number_of_executed_units") == 2
