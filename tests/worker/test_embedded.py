"""The weights in the repository, through the pipeline: recorded orders are understood and answered aloud."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.dialogue.level import amplified, gain_for, peak_of
from agent.turn.barge_in import BACKCHANNEL_FROM
from agent.wire import ContextItem
from benchmarks.dialogue.barge_in import Caller, spoken
from models.orders import Order, parse_order
from worker.audio_files import read_question
from worker.listener import PipelineListener
from worker.loading import load_model
from worker.parts import Conversation, Finished, Pcm, Question
from worker.pipeline import Pipeline
from worker.turn import TurnSettings, ask_by_text, ask_by_voice
from worker.voices.embedded import EmbeddedVoice

SPEECH = Path(__file__).resolve().parents[1] / "speech"
LABELS: dict[str, Order] = {
    Path(name).stem: label["slots"] for name, label in json.loads((SPEECH / "labels.json").read_text()).items()
}
WRITTEN = TurnSettings(speech=False)


@pytest.fixture(scope="module")
def model() -> Pipeline:
    torch.set_num_threads(1)
    return load_model("embedded")


def clip(name: str) -> Pcm:
    return read_question(SPEECH / f"{name}.opus")


def listened(model: Pipeline, pcm: Pcm) -> PipelineListener:
    utterance = model.listen(Conversation("", ()), 12.5, 12.5)
    for at in range(0, len(pcm), 5120):
        utterance.feed(pcm[at : at + 5120])
    utterance.finish()
    return utterance


def answer(model: Pipeline, utterance: PipelineListener) -> str:
    """The written answer to an utterance, prefilled anew from its embeddings."""
    utterance.prefill.lose_slot()
    question = Question(
        Conversation("", (ContextItem("user", "", 0),)), {0: utterance}, 12.5, 12.5, speech=False, max_output_tokens=80
    )
    speaker = model.respond(question)
    while not any(isinstance(event, Finished) for event in speaker.step()):
        pass
    return speaker.text


@pytest.mark.parametrize("input_hz", [12.5, 6.25])
def test_most_recorded_orders_are_restated_in_every_slot(model: Pipeline, input_hz: float) -> None:
    settings = dataclasses.replace(WRITTEN, input_hz=input_hz)
    answers = {name: parse_order(ask_by_voice(model, clip(name), settings).text) for name in LABELS}
    right = [name for name, order in answers.items() if order == LABELS[name]]
    assert len(right) >= 6, f"{len(right)} of {len(LABELS)} right"


def test_silenced_audio_embeddings_lose_the_order(model: Pipeline) -> None:
    name, utterance = next(understood(model))
    utterance._embeddings = [torch.zeros_like(part) for part in utterance._embeddings]
    assert parse_order(answer(model, utterance)) != LABELS[name]


def test_swapped_audio_embeddings_swap_the_orders(model: Pipeline) -> None:
    """The answer follows the embeddings, not the transcript."""
    (first_name, first), (second_name, second) = itertools.islice(understood(model), 2)
    first._embeddings, second._embeddings = second._embeddings, first._embeddings
    first.hearing, second.hearing = second.hearing, first.hearing
    assert parse_order(answer(model, first)) == LABELS[second_name] != LABELS[first_name]
    assert parse_order(answer(model, second)) == LABELS[first_name]


def test_answer_is_spoken_word_by_word(model: Pipeline) -> None:
    turn = ask_by_voice(model, clip(next(iter(LABELS))), TurnSettings())
    assert turn.reason == "completed"
    assert [word.text for word in turn.words] == turn.text.split()
    starts = [word.start_sample for word in turn.words]
    assert starts == sorted(starts) and turn.words[-1].start_sample < len(turn.pcm)
    letters_per_s = len(turn.text) / (len(turn.pcm) / 24_000)
    assert 8 < letters_per_s < 25, "a speaking rate that people have"
    assert 0.02 < float(np.sqrt(np.mean(turn.pcm**2))) < 0.5, "a level that people hear"


def test_other_codes_are_another_sound(model: Pipeline) -> None:
    voice = model.networks.voice
    assert isinstance(voice, EmbeddedVoice)
    turn = ask_by_voice(model, clip(next(iter(LABELS))), TurnSettings())
    codes = [(token.code, token.duration_frames) for token in turn.tokens]
    again, changed = _sound(voice, codes), _sound(voice, [((code + 400) % 1600, frames) for code, frames in codes])
    np.testing.assert_allclose(again, turn.pcm, atol=1e-4)
    assert np.corrcoef(again, changed)[0, 1] < 0.5


@pytest.mark.parametrize("output_hz", [12.5, 8.0, 6.25, 5.0, 4.0])
def test_speech_tokens_come_at_the_requested_rate(model: Pipeline, output_hz: float) -> None:
    spoken = [
        ask_by_text(model, f"can i get a {drink}", TurnSettings(output_hz=output_hz)).stats
        for drink in ("large latte with soy milk", "small dark roast coffee", "double shot mocha with brown sugar")
    ]
    realised = 12.5 * sum(s.speech_tokens for s in spoken) / sum(s.speech_frames for s in spoken)
    assert abs(realised / output_hz - 1) < 0.10, "over three sentences; `agogic bench rates` measures it over many"


def test_addition_to_an_order_remembers_the_rest_of_it(model: Pipeline) -> None:
    history = (ContextItem("user", ""), ContextItem("assistant", "Okay, one small latte with soy milk. Anything else?"))
    turn = ask_by_text(model, "add sugar", dataclasses.replace(WRITTEN, history=history))
    order = {"size": "small", "coffeeDrink": "latte", "milkAmount": "soy milk", "sugarAmount": "sugar"}
    assert parse_order(turn.text) == order


def test_an_order_is_remembered_over_its_price(model: Pipeline) -> None:
    history = [ContextItem("user", ""), ContextItem("assistant", "Okay, one large latte with soy milk. Anything else?")]

    def ask(text: str) -> str:
        reply = ask_by_text(model, text, dataclasses.replace(WRITTEN, history=tuple(history))).text
        history.extend((ContextItem("user", text), ContextItem("assistant", reply)))
        return reply

    assert ask("how much is that") == "That is four dollars fifty."
    order = {"size": "large", "roast": "dark roast", "coffeeDrink": "latte", "milkAmount": "soy milk"}
    assert parse_order(ask("make it a dark roast")) == order
    assert ask("cancel that") == "No problem, I cancelled your order."
    assert ask("how much is it") == "You have not ordered anything yet. What can I get you?"


def test_stream_of_sound_is_the_one_shot_decode(model: Pipeline) -> None:
    voice = model.networks.voice
    assert isinstance(voice, EmbeddedVoice)
    turn = ask_by_text(model, "one latte", TurnSettings(output_hz=6.25))
    codes = torch.tensor([[token.code for token in turn.tokens]])
    durations = torch.tensor([[token.duration_frames for token in turn.tokens]])
    with torch.inference_mode():
        whole = voice.vocoder(voice.flow(codes, durations))[0].numpy()
    np.testing.assert_allclose(turn.pcm, whole[: len(turn.pcm)], atol=1e-3)


def understood(model: Pipeline) -> Iterator[tuple[str, PipelineListener]]:
    """Utterances whose order is restated rightly, so that losing it can be seen."""
    for name, order in LABELS.items():
        utterance = listened(model, clip(name))
        if parse_order(answer(model, utterance)) == order:
            yield name, utterance


def _sound(voice: EmbeddedVoice, codes: list[tuple[int, int]]) -> Pcm:
    stream, parts = voice.begin(), []
    for code, frames in codes:
        stream.push(code, frames)
    stream.end()
    while not stream.finished:
        parts += voice.render([stream])
    return np.concatenate(parts)


def test_a_long_text_is_answered_by_its_end(model: Pipeline) -> None:
    wish = "can i have a sixteen ounce medium roast house coffee please"
    for before in (600, 1384, 84_000):
        text = ("i was thinking about it for a long time and " * 2000)[:before] + " " + wish
        assert ask_by_text(model, text, WRITTEN).text.startswith("Okay, one sixteen ounce medium roast house coffee")
    told = (ContextItem("assistant", "Okay, one large latte. " * 3000),)
    answer = ask_by_text(model, wish, dataclasses.replace(WRITTEN, history=told))
    assert answer.text.startswith("Okay, one sixteen ounce medium roast house coffee")


def test_a_quiet_microphone_is_understood(model: Pipeline) -> None:
    """As loud as the service hands it over."""
    understood = 0
    for name in LABELS:
        loud = clip(name)
        quiet = np.rint(loud / np.abs(loud).max() * 160).astype(np.int16)  # peaks at -46 dBFS
        raised = (amplified(quiet, gain_for(peak_of(quiet))) / 32768).astype(np.float32)
        understood += ask_by_voice(model, raised, WRITTEN).text == ask_by_voice(model, loud, WRITTEN).text
    assert understood >= len(LABELS) - 1


@pytest.mark.parametrize(
    ("name", "lets_go_on"), [("000", True), ("005", True), ("020", True), ("022", True), ("024", True), ("071", False)]
)
def test_mm_hm_and_no_wait_are_told_apart_by_their_sound(model: Pipeline, name: str, lets_go_on: bool) -> None:
    """By voices that nothing was trained on; no word of them is understood."""
    heard = np.concatenate([np.zeros(4800), clip(f"interjections/{name}"), np.zeros(3200)])
    heard += np.random.default_rng(0).normal(0, 3e-4, heard.size)
    utterance = model.networks.ear.begin(12.5)
    utterance.hear(heard.astype(np.float32))
    utterance.prepare()
    assert utterance.backchannel is not None
    assert (utterance.backchannel >= BACKCHANNEL_FROM) is lets_go_on


def test_those_who_speak_over_answers_are_heard_one_after_another(model: Pipeline) -> None:
    """The model has places for fewer callers than `agogic eval bargein` has sounds."""
    voice = spoken(clip(sorted(LABELS)[0]))[: 16_000 * 6 // 10]
    for number in range(8):
        with Caller(model, number, {}) as caller:
            for at in range(0, len(voice), 320):
                caller.step(voice[at : at + 320])
            assert caller.of("input_audio_buffer.speech_started")
            caller.say({"type": "response.create"})  # as after an interruption: waits for nobody
