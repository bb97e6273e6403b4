"""Official checkpoints in the same pipeline: heard whole at the end of the turn, spoken like a prompt recording."""

from __future__ import annotations

import dataclasses
import random

import msgspec
import numpy as np
import pytest
import torch

from agent.wire import ContextItem
from models.config import parse_config
from models.flexislm import FlexiSLM
from models.hub import EMBEDDED_DIRECTORY
from models.official_voice import OfficialVoice
from models.prompts import block
from models.tokenizer import TextTokenizer
from streaming.flow import FlowConfig, Voicebox
from streaming.infill import InfillDecoder, InfillDials, PromptVoice
from streaming.omni_encoder import OmniEncoder, OmniEncoderConfig
from streaming.vocos import Vocos, VocosConfig
from tests.worker.tiny import CODES, CONFIG, WIDTH, awake
from worker.official_ear import OmniEar
from worker.parts import Pcm, RequestError
from worker.pipeline import Networks, Pipeline
from worker.turn import TurnSettings, ask_by_text, ask_by_voice, write_down

STEPS = 20


@pytest.fixture(scope="module")
def networks() -> Networks:
    torch.manual_seed(0)
    config = {**CONFIG, "input_merging_transformer_causal": False}
    del config["agogic"]
    slm = awake(FlexiSLM(parse_config(msgspec.json.encode(config), "tiny"), WIDTH))
    omni = awake(OmniEncoder(OmniEncoderConfig(32, 1, 2, 64, WIDTH)))
    flow = FlowConfig(hidden=WIDTH, num_layers=1, num_heads=2, ffn_dim=64, mlp_dim=64, codebook_size=CODES)
    decoder = InfillDecoder(awake(Voicebox(flow)), InfillDials(steps=2))
    vocoder = awake(Vocos(VocosConfig(dim=WIDTH, hidden=64, num_layers=1)))
    prompt = PromptVoice(torch.randint(CODES, (12,)), torch.randn(48, 128))
    voice = OfficialVoice(decoder, vocoder, prompt)
    tokenizer = TextTokenizer.load(EMBEDDED_DIRECTORY)
    return Networks("official", slm, tokenizer, OmniEar(omni, slm), voice, uniform=random.Random(1).random)


def noise(seconds: float, seed: int = 0) -> Pcm:
    return (np.random.default_rng(seed).standard_normal(int(seconds * 16_000)) * 0.1).astype(np.float32)


@pytest.mark.parametrize("hz", [6.25, 12.5])
def test_question_is_heard_whole_and_answered_aloud(networks: Networks, hz: float) -> None:
    turn = ask_by_voice(Pipeline(networks, 1), noise(3), TurnSettings(input_hz=hz, max_output_tokens=STEPS))
    assert turn.encoded is not None
    assert turn.encoded.frames == 75 and turn.encoded.groups >= round(hz * 3), "exact top-k, and longest groups split"
    assert turn.tokens and len(turn.pcm) == 1920 * sum(token.duration_frames for token in turn.tokens)
    assert turn.words or not turn.text


def test_written_answer_needs_no_voice(networks: Networks) -> None:
    mute = Pipeline(dataclasses.replace(networks, voice=None), 1)
    assert ask_by_text(mute, "hello", TurnSettings(speech=False, max_output_tokens=STEPS)).stats.text_tokens
    with pytest.raises(RequestError, match="voice prompt"):
        ask_by_text(mute, "hello", TurnSettings())


def test_what_was_said_is_written_down_by_the_thinker(networks: Networks) -> None:
    turn = write_down(Pipeline(networks, 1), noise(2), TurnSettings(max_output_tokens=STEPS))
    assert turn.stats.text_tokens and turn.transcript == turn.text and not len(turn.pcm)


def test_silence_of_no_length_is_answered(networks: Networks) -> None:
    turn = ask_by_voice(Pipeline(networks, 1), noise(0), TurnSettings(max_output_tokens=STEPS))
    assert turn.stats.text_tokens


@pytest.mark.parametrize("spoken", [False, True])
def test_earlier_turns_stand_in_the_prompt_as_far_as_there_is_room(networks: Networks, spoken: bool) -> None:
    model = Pipeline(networks, 1)

    def prompt_positions(*history: ContextItem) -> int:
        settings = TurnSettings(speech=False, max_output_tokens=3, history=history)
        turn = ask_by_voice(model, noise(1), settings) if spoken else ask_by_text(model, "hello", settings)
        return turn.stats.prompt_positions

    alone = prompt_positions()
    past = ContextItem("user", "one latte"), ContextItem("assistant", "sure")
    positions = len(networks.tokenizer.encode(block("user", "one latte") + block("assistant", "sure")))
    assert prompt_positions(*past) == alone + positions > alone + 10
    assert prompt_positions(*(500 * past)) == alone + 512 // positions * positions
    assert prompt_positions(ContextItem("user", "", 7), past[1]) < alone + positions
