"""Chunked decoding with weights that see everything: one chunk is the official decode, and the laws hold."""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.golden.speech import TINY_FLOW
from benchmarks.streams import seams
from kernels.recorder import Plain, Recorder, Strict
from streaming.speaking.flow import Voicebox
from streaming.speaking.flow_decoder import SpeechCodeError
from streaming.speaking.infill import NOISE_FRAMES, InfillDecoder, InfillDials, InfillStream, PromptVoice
from streaming.speaking.infill_window import WindowBatch
from streaming.speaking.vocoder_window import EDGE_FRAMES, VocoderStream, WindowDials
from streaming.speaking.vocos import Vocos, VocosConfig
from tests.support.golden import assert_close, golden_tensors, weights

FLOW = golden_tensors("flexicodec", "voicebox_tiny.safetensors")
VOCOS = golden_tensors("flexicodec", "vocos_tiny.safetensors")
PROMPT = PromptVoice(FLOW["codes"][0, :13], FLOW["prompt"][0])
CODES = FLOW["codes"][0, 13:].tolist()  # 25 frames
QUICK = InfillDials(steps=2, chunk_frames=(2, 5), look_ahead_frames=2, context_frames=6)


@pytest.fixture(scope="module")
def voicebox() -> Voicebox:
    module = Voicebox(TINY_FLOW).requires_grad_(False)
    module.load_state_dict(weights(FLOW))
    return module


def drain(decoder: InfillDecoder, stream: InfillStream) -> list[Tensor]:
    chunks = []
    while stream.ready:
        chunks += [chunk.mel for chunk in decoder.render([stream])]
    return chunks


def test_one_chunk_is_the_official_decode(voicebox: Voicebox) -> None:
    decoder = InfillDecoder(voicebox, InfillDials(steps=4, chunk_frames=(1000,), prefix_every=1, keep_prompt=False))
    decoder.noise = torch.zeros(NOISE_FRAMES, 128)
    decoder.noise[:100] = FLOW["noise"][0]
    stream = decoder.begin(PROMPT)
    for code in CODES:
        stream.push(code, 1)
    assert not stream.ready
    stream.end()
    assert_close(torch.cat(drain(decoder, stream))[None], FLOW["out.cfg2_rescale0.75_steps4"])


@settings(max_examples=10, deadline=None)
@given(pauses=st.sets(st.integers(0, 24)))
def test_when_codes_arrive_changes_nothing(voicebox: Voicebox, pauses: set[int]) -> None:
    decoder = InfillDecoder(voicebox, QUICK)

    def mel(pauses: set[int]) -> Tensor:
        stream, chunks = decoder.begin(PROMPT), []
        for number, code in enumerate(CODES):
            stream.push(code, 1)
            if number in pauses:
                chunks += drain(decoder, stream)
        stream.end()
        return torch.cat(chunks + drain(decoder, stream))

    assert mel(pauses).shape == (100, 128)
    torch.testing.assert_close(mel(pauses), mel(set()))


@pytest.mark.parametrize("keep_prompt", [True, False])
def test_a_stream_in_company_is_a_stream_alone(voicebox: Voicebox, keep_prompt: bool) -> None:
    decoder = InfillDecoder(voicebox, replace(QUICK, keep_prompt=keep_prompt))
    other = PromptVoice(PROMPT.codes[:5], PROMPT.mel[:20])

    def streams() -> list[InfillStream]:
        made = [decoder.begin(PROMPT), decoder.begin(other), decoder.begin(PROMPT), decoder.begin(None)]
        for stream, codes in zip(made, (CODES, CODES[3:12], CODES[:3], CODES[5:]), strict=True):
            for code in codes:
                stream.push(code, 1)
            stream.end()
        return made

    alone = [torch.cat(drain(decoder, stream)) for stream in streams()]
    company: list[list[Tensor]] = [[], [], [], []]
    together = streams()
    while ready := [number for number, stream in enumerate(together) if stream.ready]:
        for number, chunk in zip(ready, decoder.render([together[number] for number in ready]), strict=True):
            company[number].append(chunk.mel)
    for chunks, expected in zip(company, alone, strict=True):
        torch.testing.assert_close(torch.cat(chunks), expected, rtol=1e-4, atol=1e-5)


def test_chunks_follow_the_schedule_and_memory_is_bounded(voicebox: Voicebox) -> None:
    decoder = InfillDecoder(voicebox, InfillDials(steps=1, chunk_frames=(1, 3), look_ahead_frames=1, context_frames=4))
    stream = decoder.begin(PROMPT)
    sizes = []
    for code in CODES * 4:
        stream.push(code, 2)
        sizes += [chunk.shape[0] // 4 for chunk in drain(decoder, stream)]
        assert stream.ready is False
    assert sizes[:4] == [1, 3, 3, 3]
    stream.end()
    assert sum(sizes) + sum(chunk.shape[0] // 4 for chunk in drain(decoder, stream)) == 200
    assert len(stream.window().codes) == 4


def test_a_prefix_used_for_three_steps_hardly_changes_the_mel(voicebox: Voicebox) -> None:
    def mel(prefix_every: int) -> Tensor:
        decoder = InfillDecoder(voicebox, InfillDials(steps=6, prefix_every=prefix_every))
        stream = decoder.begin(PROMPT)
        for code in CODES:
            stream.push(code, 1)
        stream.end()
        return torch.cat(drain(decoder, stream))

    anew, reused, once = mel(1), mel(3), mel(6)
    error, of_once = ((other - anew).norm() / anew.norm() for other in (reused, once))
    assert 0 < error < of_once < 0.05
    assert error < 0.015


def test_a_prompt_made_once_hardly_changes_the_mel(voicebox: Voicebox) -> None:
    def mel(dials: InfillDials) -> Tensor:
        decoder = InfillDecoder(voicebox, dials)
        stream = decoder.begin(PROMPT)
        for code in CODES:
            stream.push(code, 1)
        stream.end()
        return torch.cat(drain(decoder, stream))

    dials = InfillDials(steps=6, prefix_every=2, keep_prompt=False)
    anew, kept = mel(dials), mel(replace(dials, keep_prompt=True))
    in_one_chunk = mel(replace(dials, prefix_every=1, chunk_frames=(1000,)))
    error = (kept - anew).norm() / anew.norm()
    assert 0 < error < 0.015
    assert error < 0.4 * (anew - in_one_chunk).norm() / anew.norm()


def test_the_pass_without_a_prefix_sees_none_of_it(voicebox: Voicebox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed with the guided frames, it gives what the network gives of the target by itself."""
    network, passes = voicebox.diff_estimator, []
    original = WindowBatch._pass

    def watched(batch: WindowBatch, gain: Tensor, *, whole: bool, with_bare: bool) -> tuple[Tensor, Tensor | None]:
        x = batch.x.clone()
        velocity, bare = original(batch, gain, whole=whole, with_bare=with_bare)
        assert bare is not None
        nothing = network.cond_mlp(torch.zeros(1, 1, TINY_FLOW.hidden))
        rotation = network.rotation(torch.arange(x.shape[1])[None], x.dtype)
        torch.testing.assert_close(
            bare, network.with_cache(x, gain[None], nothing, rotation, None, None), rtol=1e-4, atol=1e-5
        )
        assert (bare - velocity).abs().max() > 1e-3
        passes.append(whole)
        return velocity, bare

    monkeypatch.setattr(WindowBatch, "_pass", watched)
    decoder = InfillDecoder(voicebox, replace(QUICK, steps=4))
    stream = decoder.begin(PROMPT)
    for code in CODES:
        stream.push(code, 1)
    drain(decoder, stream)
    assert passes == [True, False, False, True] * 6, "five chunks and the rehearsal of the prompt"


@pytest.mark.parametrize("keep_prompt", [True, False])
def test_a_recorded_window_needs_nothing_of_the_host(voicebox: Voicebox, keep_prompt: bool) -> None:
    """Windows of fixed places, filled by one to three utterances of other lengths, under the strict recorder; and the
    mel is that of windows as long as they must be."""
    dials = replace(QUICK, steps=5, guided_steps=3, keep_prompt=keep_prompt)
    other = PromptVoice(PROMPT.codes[:5], PROMPT.mel[:20])

    def mel(recorder: Recorder) -> list[Tensor]:
        decoder = InfillDecoder(voicebox, dials, recorder=recorder)
        streams = [decoder.begin(prompt) for prompt in (PROMPT, other, None)]
        for stream, codes in zip(streams, (CODES, CODES[3:12], CODES[:3]), strict=True):
            for code in codes:
                stream.push(code, 1)
            stream.end()
        decoder.warm_up(3)
        made: list[list[Tensor]] = [[], [], []]
        while ready := [number for number, stream in enumerate(streams) if stream.ready]:
            for number, chunk in zip(ready, decoder.render([streams[number] for number in ready]), strict=True):
                made[number].append(chunk.mel)
        return [torch.cat(parts) for parts in made]

    strict = Strict()
    for recorded, plain in zip(mel(strict), mel(Plain()), strict=True):
        torch.testing.assert_close(recorded, plain, rtol=1e-4, atol=1e-5)
    shapes = {key[0] for key in strict.traces if isinstance(key, tuple)}
    assert 2 <= len(shapes) <= 6
    assert all(not trace.host_reads + trace.host_made for trace in strict.traces.values())


def test_guidance_on_early_steps_alone_changes_little(voicebox: Voicebox) -> None:
    def mel(guided_steps: int) -> Tensor:
        decoder = InfillDecoder(voicebox, InfillDials(steps=6, guided_steps=guided_steps))
        stream = decoder.begin(PROMPT)
        for code in CODES:
            stream.push(code, 1)
        stream.end()
        return torch.cat(drain(decoder, stream))

    every = mel(6)
    errors = [float((mel(steps) - every).norm() / every.norm()) for steps in (0, 3, 5)]
    assert errors[0] > errors[1] > errors[2] > 0
    torch.testing.assert_close(mel(1000), every)


def test_answers_in_one_voice_share_its_prompt_and_let_go_of_it(voicebox: Voicebox) -> None:
    decoder = InfillDecoder(voicebox, QUICK)
    voice = PromptVoice(PROMPT.codes, PROMPT.mel)
    keys = []
    for prompt in (voice, voice, PromptVoice(PROMPT.codes[:5], PROMPT.mel[:20])):
        stream = decoder.begin(prompt)
        for code in CODES:
            stream.push(code, 1)
        keys.append(stream.window().prompt[0])
    assert keys[0] is keys[1]
    assert [made.shape[3] for made in keys] == [52, 52, 20]
    remembered = weakref.ref(keys[0])
    del voice, keys, stream, prompt
    gc.collect()
    assert remembered() is None


@pytest.mark.parametrize("prompt", [PROMPT, None])
def test_nothing_waits_for_more_than_the_look_ahead(voicebox: Voicebox, prompt: PromptVoice | None) -> None:
    decoder = InfillDecoder(voicebox, QUICK)
    stream = decoder.begin(prompt)
    for _ in range(3):
        stream.push(1, 1)
        assert not stream.ready
    stream.push(1, 1)
    (chunk,) = decoder.render([stream])
    assert chunk.mel.shape == chunk.ahead.shape == (8, 128)


def test_a_chunk_continues_what_was_made_before_it(voicebox: Voicebox) -> None:
    decoder = InfillDecoder(voicebox, QUICK)

    def second_chunk(first_code: int) -> Tensor:
        stream = decoder.begin(PROMPT)
        for code in [first_code, *CODES[1:]]:
            stream.push(code, 1)
        decoder.render([stream])
        return decoder.render([stream])[0].mel

    assert (second_chunk(200) - second_chunk(CODES[0])).abs().max() > 1e-4


def test_bad_codes_and_prompts_are_refused(voicebox: Voicebox) -> None:
    stream = InfillDecoder(voicebox, QUICK).begin(PROMPT)
    for code, duration in ((256, 1), (-1, 1), (0, 0), (0, 9)):
        with pytest.raises(SpeechCodeError):
            stream.push(code, duration)
    with pytest.raises(ValueError, match="13 codes does not fit"):
        PromptVoice(PROMPT.codes, PROMPT.mel[:-1])
    with pytest.raises(ValueError, match="at least 1 frame"):
        InfillDials(chunk_frames=(0,))
    with pytest.raises(ValueError, match="prefix_every"):
        InfillDials(prefix_every=0)


@pytest.fixture(scope="module")
def vocoder() -> Vocos:
    module = Vocos(VocosConfig(dim=64, hidden=128, num_layers=3)).requires_grad_(False)
    module.load_state_dict(weights(VOCOS))
    return module


MEL = VOCOS["in.mel"][0].T  # 93 frames


@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8))
def test_with_all_it_sees_the_windowed_vocoder_is_exact(vocoder: Vocos, sizes: list[int]) -> None:
    reach = 3 * (vocoder.config.num_layers + 1) + EDGE_FRAMES  # three frames a convolution, and the transform's edge
    stream = VocoderStream(vocoder, WindowDials(reach, reach + 2, fade_frames=2))
    cuts = torch.tensor(sizes).cumsum(0).clamp_max(len(MEL))
    parts = [stream.push(piece) for piece in torch.tensor_split(MEL, cuts)]
    parts.append(stream.flush())
    torch.testing.assert_close(torch.cat(parts)[None], vocoder(MEL[None]), rtol=1e-3, atol=1e-5)


def test_truncated_windows_join_without_clicks(vocoder: Vocos) -> None:
    stream = VocoderStream(vocoder, WindowDials(left_frames=8, right_frames=4, fade_frames=2))
    parts = [stream.push(piece) for piece in MEL.split(16)]
    assert [len(part) for part in parts] == [12 * 480, *[16 * 480] * 4, 13 * 480]
    joined, whole = torch.cat([*parts, stream.flush()]), vocoder(MEL[None])[0]
    assert joined.shape == whole.shape
    jumps = (joined[1:] - joined[:-1]).abs()
    borders = torch.tensor([len(torch.cat(parts[: number + 1])) for number in range(len(parts))])
    near = torch.cat([jumps[border - 4 : border + 4] for border in borders])
    assert near.max() <= 1.5 * (whole[1:] - whole[:-1]).abs().max()


def test_windows_that_cannot_be_faded_are_refused() -> None:
    with pytest.raises(ValueError, match="2 more than"):
        WindowDials(right_frames=3, fade_frames=2)


def test_what_the_steps_add_up_stays_in_float32(voicebox: Voicebox) -> None:
    """In bfloat16 the sum of fifteen steps would be off by its own rounding, whatever the network gives."""
    half = copy.deepcopy(voicebox).bfloat16()
    with pytest.MonkeyPatch.context() as patch:
        constant = lambda batch, gain, **passes: (torch.full_like(batch.x, 0.01), None)  # noqa: E731
        patch.setattr(WindowBatch, "_pass", constant)
        decoder = InfillDecoder(half, InfillDials(steps=15, guidance=0.0, chunk_frames=(4,)))
        stream = decoder.begin(PROMPT)
        for code in CODES[:8]:
            stream.push(code, 1)
        (chunk,) = decoder.render([stream])
    torch.testing.assert_close(chunk.mel, decoder.noise[:16] + 0.01, rtol=0, atol=1e-6)
    mel = InfillDecoder(half, QUICK).begin(PROMPT)
    for code in CODES:
        mel.push(code, 1)
    (made,) = InfillDecoder(half, QUICK).render([mel])
    assert made.mel.dtype == torch.float32 and made.mel.isfinite().all()


def test_joints_are_no_worse_than_other_places() -> None:
    report = seams.run(utterances=3, codes=60, steps=2)
    assert report["clicks"] == 0
    assert report["joints"] >= 20
    assert report["seam_ratio"] <= 1.15  # 1.07 over more and longer utterances


def test_the_measure_sees_a_bad_joint() -> None:
    tone = torch.sin(torch.arange(48_000) / 12) * 0.3
    cut = torch.cat((tone[:24_000], tone[24_019:], tone[:19]))
    assert seams.clicks(seams.Joined(cut, [24_000]), tone) == 1
    assert seams.clicks(seams.Joined(tone, [24_000]), tone) == 0
    noise = torch.randn(48_000, generator=torch.Generator().manual_seed(0)) * 1e-4
    assert seams.seam_ratio(seams.Joined(cut + noise, [24_000]), tone) > 1.2
