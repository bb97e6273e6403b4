"""Official checkpoints in the same pipeline: heard whole at the end of the turn, spoken like a prompt recording."""

from __future__ import annotations

import dataclasses
from functools import cache

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agent.wire import ContextItem
from models.checkpoints.hub import EMBEDDED_DIRECTORY
from models.networks.config import parse_config
from models.networks.flexislm import FlexiSLM
from models.networks.prompts import block
from models.networks.tokenizer import TextTokenizer
from streaming.hearing.omni_encoder import OmniEncoder, OmniEncoderConfig
from streaming.speaking.flow import FlowConfig, Voicebox
from streaming.speaking.infill import InfillDecoder, InfillDials, PromptVoice
from streaming.speaking.vocos import Vocos, VocosConfig
from tests.worker.tiny import CODES, CONFIG, WIDTH, awake
from worker.ears.omni import CausalOmniHearing, OmniEar, OmniHearing
from worker.parts import Conversation, Pcm, Question, RequestError
from worker.pipeline import Networks, Pipeline
from worker.speaker import PipelineSpeaker
from worker.turn import TurnSettings, ask_by_text, ask_by_voice, write_down
from worker.voices.official import OfficialVoice

STEPS = 20


@cache
def tiny_ear(causal: bool) -> OmniEar:
    torch.manual_seed(0)
    config = {**CONFIG, "input_merging_transformer_causal": causal}
    del config["agogic"]
    slm = awake(FlexiSLM(parse_config(msgspec.json.encode(config), "tiny"), WIDTH))
    return OmniEar(awake(OmniEncoder(OmniEncoderConfig(32, 1, 2, 64, WIDTH))), slm)


@pytest.fixture(scope="module")
def networks() -> Networks:
    ear = tiny_ear(False)
    flow = FlowConfig(hidden=WIDTH, num_layers=1, num_heads=2, ffn_dim=64, mlp_dim=64, codebook_size=CODES)
    decoder = InfillDecoder(awake(Voicebox(flow)), InfillDials(steps=2))
    vocoder = awake(Vocos(VocosConfig(dim=WIDTH, hidden=64, num_layers=1)))
    prompt = PromptVoice(torch.randint(CODES, (12,)), torch.randn(48, 128))
    voice = OfficialVoice(decoder, vocoder, prompt)
    tokenizer = TextTokenizer.load(EMBEDDED_DIRECTORY)
    return Networks("official", ear.slm, tokenizer, ear, voice, draws=True)


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


# --- the end that may be none ---

Hearing = OmniHearing | CausalOmniHearing
PIECES = st.tuples(st.integers(0, 40_000), st.sampled_from([0.003, 0.1, 1.0]))
"""Samples and loudness: what is much louder than everything before it changes the features of all that was heard."""


def heard(ear: OmniEar, pieces: list[Pcm], previous: Hearing | None = None) -> tuple[Hearing, list[Tensor]]:
    hearing = ear.begin(8.0, previous)
    return hearing, [hearing.hear(piece) for piece in pieces]


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
@settings(max_examples=30, deadline=None)
@given(script=st.lists(st.one_of(st.none(), PIECES), max_size=8))
@torch.inference_mode()
def test_a_prepared_end_is_the_end_and_more_sound_takes_it_back(
    causal: bool, script: list[tuple[int, float] | None]
) -> None:
    """script: None prepares, everything else is heard."""
    ear, pieces = tiny_ear(causal), list[Pcm]()
    asked, plain = ear.begin(8.0), ear.begin(8.0)
    for step in script:
        if step is None:
            alone, _ = heard(ear, pieces)
            same(asked.prepare(), alone.finish())
        else:
            pieces.append(noise(1, seed=len(pieces)).repeat(3)[: step[0]] * np.float32(step[1]))
            same(asked.hear(pieces[-1]), plain.hear(pieces[-1]))
        assert (asked.samples, asked.frames, asked.groups) == (plain.samples, plain.frames, plain.groups)
    same(asked.finish(), plain.finish())
    assert (asked.samples, asked.frames, asked.groups) == (plain.samples, plain.frames, plain.groups)
    for before, after in zip(heard(ear, [noise(3)], plain)[1], heard(ear, [noise(3)], asked)[1], strict=True):
        same(after, before)


@pytest.mark.parametrize("causal", [False, True])
@torch.inference_mode()
def test_an_end_that_was_prepared_costs_nothing_more(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ear, encoded = tiny_ear(causal), list[int]()
    encode = ear.encoder.encode_blocks
    monkeypatch.setattr(ear.encoder, "encode_blocks", lambda mel: encoded.append(mel.shape[1]) or encode(mel))
    hearing, _ = heard(ear, [noise(1), noise(2.5)])
    assert encoded == [200]
    prepared = hearing.prepare()
    assert encoded == [200, 150] and hearing.prepare() is prepared
    assert hearing.finish() is prepared and encoded == [200, 150]


@pytest.mark.parametrize("causal", [False, True])
@torch.inference_mode()
def test_when_the_user_goes_on_only_the_open_block_is_encoded_anew(
    causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ear, encoded = tiny_ear(causal), list[int]()
    encode = ear.encoder.encode_blocks
    monkeypatch.setattr(ear.encoder, "encode_blocks", lambda mel: encoded.append(mel.shape[1]) or encode(mel))
    hearing, _ = heard(ear, [noise(3.5)])
    hearing.prepare()
    hearing.hear(0.9 * noise(1))
    hearing.prepare()
    hearing.finish()
    assert encoded == [200, 150, 200, 50]


@torch.inference_mode()
def test_nothing_heard_can_be_prepared_for(networks: Networks) -> None:
    hearing = networks.ear.begin(8.0)
    assert isinstance(hearing, OmniHearing)
    assert len(hearing.prepare()) == len(hearing.finish()) == hearing.groups == hearing.frames == 0


def test_what_is_drawn_hangs_on_the_answers_own_name(networks: Networks) -> None:
    """Whoever else is answered meanwhile, and however often the model was asked before."""
    model = Pipeline(networks, 3)

    def codes(session: int, generation: int, neighbours: int) -> list[int]:
        asked = Question(Conversation("", (ContextItem("user", "hi"),)), {}, 12.5, 12.5, True, 24)
        speakers = [
            model.respond(dataclasses.replace(asked, session=number, generation=generation))
            for number in range(session, session + neighbours + 1)
        ]
        while (unit := speakers[0].unit) != "end":
            model.step([speaker for speaker in speakers if speaker.unit == unit], unit)
        assert isinstance(speakers[0], PipelineSpeaker)
        drawn = [token.code for token in speakers[0]._tokens.all]
        for speaker in speakers:
            speaker.close()
        return drawn

    alone = codes(1, 1, 0)
    assert len(alone) > 8
    assert codes(1, 1, 2) == alone == codes(1, 1, 0)
    assert codes(1, 2, 0) != alone != codes(2, 1, 0)
