"""The embedded codec: merging to a rate, codes that stand for themselves, batches that equal single utterances."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.checkpoints.voice_files import VoiceFileError, load_codec, load_vocoder, save_network
from streaming.flexicodec.codec import CodecConfig, SpeechCodec, merge_batch, merge_to_rate

SMALL = CodecConfig(
    dim=32, vector_dim=24, num_heads=2, ffn_dim=48, encoder_layers=1, aggregator_layers=1, levels=(8, 5, 5)
)


@pytest.fixture(scope="module")
def codec() -> SpeechCodec:
    torch.manual_seed(4)
    codec = SpeechCodec(SMALL).eval()
    with torch.no_grad():
        for name, parameter in codec.named_parameters():
            if name.endswith("scale"):
                parameter.fill_(0.7)
        codec.semantic_vq.fsq.project_in.weight.mul_(4)
    return codec


@settings(max_examples=60, deadline=None)
@given(
    similarity=st.lists(st.floats(-1, 1, width=32), min_size=0, max_size=60, unique=True),
    rate_hz=st.sampled_from((12.5, 8.0, 6.25, 5.0, 4.0)),
)
def test_groups_cover_every_frame_and_keep_the_rate(similarity: list[float], rate_hz: float) -> None:
    frames = len(similarity) + 1
    durations = merge_to_rate(torch.tensor(similarity), frames, rate_hz)
    assert sum(durations) == frames
    assert all(1 <= duration <= 8 for duration in durations)
    wanted = max(1, round(frames * rate_hz / 12.5))
    assert wanted <= len(durations) <= wanted + frames // 8


def test_the_least_alike_neighbours_are_parted() -> None:
    similarity = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.95])
    assert merge_to_rate(similarity, 6, 6.25) == [2, 2, 2]


def test_a_run_is_cut_after_eight_frames() -> None:
    assert merge_to_rate(torch.ones(19), 20, 0.5) == [8, 8, 4]


def test_a_vector_of_a_code_is_what_the_encoder_passed_on(codec: SpeechCodec) -> None:
    features = torch.randn(1, 14, 32, generator=torch.Generator().manual_seed(1))
    durations = merge_batch(features, [14], [6.25])
    with torch.inference_mode():
        vectors, codes = codec.quantise(features, durations)
        torch.testing.assert_close(codec.vectors(codes), vectors)
    assert codes.unique().numel() > 1
    assert int(codes.min()) >= 0 and int(codes.max()) < 200


def test_a_batch_codes_each_utterance_as_if_alone(codec: SpeechCodec) -> None:
    generator = torch.Generator().manual_seed(2)
    log_mel = torch.randn(2, 8 * 12, 80, generator=generator)
    with torch.inference_mode():
        features = codec.semantic_model(log_mel, torch.arange(12) < torch.tensor([[12], [7]]))
        durations = merge_batch(features, [12, 7], [8.0, 8.0])
        vectors, codes = codec.quantise(features, durations)
        alone, alone_durations = codec.encode(log_mel[0], 8.0)
        count = int((durations[0] > 0).sum())
        assert durations[0, :count].tolist() == alone_durations.tolist()
        assert codes[0, :count].tolist() == alone.tolist()
        single = codec.quantise(features[1:, :7], durations[1:, : int((durations[1] > 0).sum())])[0]
        torch.testing.assert_close(vectors[1:, : single.shape[1]], single, rtol=1e-4, atol=1e-5)


def test_a_coarser_rate_gives_fewer_codes_for_the_same_time(codec: SpeechCodec) -> None:
    log_mel = torch.randn(8 * 40, 80, generator=torch.Generator().manual_seed(3))
    counts = []
    for rate_hz in (12.5, 6.25, 4.0):
        codes, durations = codec.encode(log_mel, rate_hz)
        assert int(durations.sum()) == 40
        counts.append(len(codes))
    assert counts[0] == 40 > counts[1] > counts[2]


def test_a_file_brings_its_own_configuration(codec: SpeechCodec, tmp_path: Path) -> None:
    save_network(codec, SMALL, tmp_path / "codec.safetensors")
    again = load_codec(tmp_path / "codec.safetensors")
    assert again.config == SMALL
    torch.testing.assert_close(
        again.convnext_decoder.state_dict(), codec.convnext_decoder.state_dict(), rtol=1e-3, atol=1e-3
    )


def test_missing_damaged_and_foreign_files_are_named(codec: SpeechCodec, tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    with pytest.raises(VoiceFileError, match="missing"):
        load_codec(path)
    save_network(codec, SMALL, path)
    with pytest.raises(VoiceFileError, match="not a usable Vocos"):
        load_vocoder(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(VoiceFileError, match=r"codec\.safetensors is not a usable"):
        load_codec(path)
