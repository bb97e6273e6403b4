"""Golden parity of FlexiCodec: our networks against recorded outputs of the original ones.

Every check yields a tensor's name and our value for it.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.golden import speech as golden_speech
from benchmarks.golden.files import Check, Computed, Golden, TensorResult, run_fixture
from streaming.flexicodec.aggregator import QueryAggregator
from streaming.flexicodec.dac import DacDecoder, DacEncoder
from streaming.flexicodec.fbank import SenseVoiceFrontEnd, stack_frames
from streaming.flexicodec.flexicodec import FlexiCodec, FlexiCodecConfig, SpeechCodes
from streaming.flexicodec.frame_resampling import FrameResampler, resampled_length
from streaming.flexicodec.fsq import FSQ
from streaming.flexicodec.rvq import ResidualQuantizer
from streaming.flexicodec.sensevoice import SenseVoiceConfig, SenseVoiceEncoder
from streaming.layers.transformer import ProjectedTransformer, TransformerConfig
from streaming.merging.grouping import group_frames, neighbour_similarity

THRESHOLDS = (1.0, 0.95, 0.93, 0.92, 0.9, 0.86, 0.8)
TINY_SENSEVOICE = SenseVoiceConfig(d_model=64, num_heads=4, ffn_dim=128, num_blocks=3)
TINY_CODEC = FlexiCodecConfig(
    encoder_dim=4, decoder_dim=64, latent_dim=64, ssl_dim=64, n_codebooks=4, codebook_size=64, convnext_dim=48,
    convnext_layers=2, transformer_num_layers=3, transformer_dim=64, transformer_num_heads=4,
    transformer_dim_feedforward=128, agg_transformer_num_layers=2, agg_transformer_dim=64,
    agg_transformer_num_heads=4, agg_transformer_dim_feedforward=128,
)  # fmt: skip


def front_end(golden: Golden) -> SenseVoiceFrontEnd:
    tensors = golden["frontend"]
    return SenseVoiceFrontEnd(tensors["cmvn_shift"], tensors["cmvn_scale"])


def check_frontend(golden: Golden) -> Computed:
    module = front_end(golden)
    for clip, audio in golden.clips("16k"):
        mel = module.log_mel(audio)
        yield f"{clip}.fbank80", mel
        yield f"{clip}.lfr560", stack_frames(mel)
        yield f"{clip}.features", module(audio)
        if clip == "a":
            generator = torch.Generator().manual_seed(0)
            yield "a.fbank80_dither1_seed0", module.log_mel(audio, 1.0, generator)


def check_sensevoice(golden: Golden) -> Computed:
    state = golden.weights("sensevoice_tiny")
    last = max(int(key.split(".")[2]) for key in state if key.startswith("encoder.encoders."))
    has_tp = "encoder.tp_norm.weight" in state
    config = SenseVoiceConfig(64, 4, 128, last + 2, tp_blocks=2 if has_tp else 0)
    module = SenseVoiceEncoder(config)
    module.load_state_dict({key: value for key, value in state.items() if not key.startswith("ctc.")})
    prepended = []
    for clip, audio in golden.clips("16k"):
        features = front_end(golden)(audio[None])
        prepended.append(module.prepend_queries(features))
        yield f"{clip}.prepended", prepended[-1]
        hidden = module.hidden_states(prepended[-1])
        for number, value in enumerate(hidden):
            yield f"{clip}.hiddens.{number}", value
        if has_tp:
            yield f"{clip}.hidden_out", hidden[config.num_blocks - 1]
            yield f"{clip}.encoder_out", hidden[-1]
            yield f"{clip}.semantic", module(features)
    if has_tp:
        batch = torch.nn.utils.rnn.pad_sequence([item[0] for item in prepended], batch_first=True)
        masked = module.hidden_states(batch, torch.tensor([item.shape[1] for item in prepended]))
        yield "batch.hidden_out_masked", masked[config.num_blocks - 1]


def check_transformer(golden: Golden) -> Computed:
    tensors = golden["transformer_tiny"]
    for mode, key in (("full", "full"), ("window", "window_symmetric"), ("causal", "causal_context")):
        module = ProjectedTransformer(TransformerConfig(48, 32, 4, 3, 96, 48, mode, 8))  # type: ignore[arg-type]
        module.load_state_dict(golden.weights("transformer_tiny"))
        yield f"out.{key}", module(tensors["in"].transpose(1, 2)).transpose(1, 2)


def check_transformer_noproj(golden: Golden) -> Computed:
    module = ProjectedTransformer(TransformerConfig(32, 32, 4, 3, 96, 32))
    module.load_state_dict(golden.weights("transformer_noproj_tiny"))
    yield "out.full", module(golden["transformer_noproj_tiny"]["in"].transpose(1, 2)).transpose(1, 2)


def check_aggregator(golden: Golden) -> Computed:
    tensors = golden["aggregator_tiny"]
    state = golden.weights("aggregator_tiny")
    ffn_dim = state["transformer.transformer.layers.0.linear1.weight"].shape[0]
    module = QueryAggregator(TransformerConfig(32, 32, 4, 2, ffn_dim, 32))
    module.load_state_dict(state)
    durations = tensors["alignment"].sum(-1).long()
    batch = tensors["in"].transpose(1, 2)
    for name, frames, groups in (
        ("alone0", batch[:1], durations[:1, :6]),
        ("alone1", tensors["alone1.in"].transpose(1, 2), durations[1:]),
    ):
        yield f"{name}.interleaved", module.interleave(frames, groups)[0].transpose(1, 2)
        yield f"{name}.out", module(frames, groups).transpose(1, 2)
    sequence, places, real = module.interleave(batch, durations)
    # The original leaves its padding in an arbitrary order and attends to it: take that over, check all real places.
    theirs = tensors["interleaved"].transpose(1, 2)
    sequence = torch.where(real[:, :, None], sequence, theirs)
    yield "interleaved", sequence.transpose(1, 2)
    out = module.transformer(sequence).gather(1, places[:, :, None].expand(-1, -1, 32))
    yield "out", (out * (durations > 0)[:, :, None]).transpose(1, 2)


def check_fsq(golden: Golden) -> Computed:
    tensors = golden["fsq_tiny"]
    module = FSQ([8] * 5, 48)
    module.load_state_dict({key.removeprefix("fsq."): value for key, value in golden.weights("fsq_tiny").items()})
    projected = module.project(tensors["in"].transpose(1, 2))
    values, codes = module.quantise(projected)
    yield "projected", projected
    yield "bounded", module.bound(projected)
    yield "codes_normalised", values
    yield "digits", values * module.steps + module.steps
    yield "indices", codes[:, None]
    yield "out", module(tensors["in"].transpose(1, 2))[0].transpose(1, 2)
    yield "table.codes", FSQ([8] * 5).decode(tensors["table.indices"])


def check_fsq_mixed(golden: Golden) -> Computed:
    module = FSQ([8, 5, 5, 3])
    x = golden["fsq_mixed_levels"]["in"]
    values, codes = module(x)
    yield "bounded", module.bound(x)
    yield "codes", values
    yield "indices", codes


def check_rvq(golden: Golden) -> Computed:
    module = ResidualQuantizer(32, 3, 32, 8)
    module.load_state_dict(golden.weights("rvq_tiny"))
    codes, total, latents = module.encode(golden["rvq_tiny"]["in"], 3)
    yield "codes", codes
    yield "out", total
    yield "latents", latents
    yield "out", module.decode(codes)


def check_dac(golden: Golden) -> Computed:
    encoder, decoder = DacEncoder(4, (4, 4, 5, 8, 2), 32), DacDecoder(32, 64, (2, 8, 5, 4, 4))
    encoder.load_state_dict(golden.weights("dac_tiny", "enc."))
    decoder.load_state_dict(golden.weights("dac_tiny", "dec."))
    audio = dict(golden.clips("16k"))["b"]
    yield "in", (padded := F.pad(audio, (0, -len(audio) % encoder.hop_samples))[None, None])
    yield "latent", encoder(padded)
    yield "out", decoder(golden["dac_tiny"]["latent"])


def codec(golden: Golden) -> FlexiCodec:
    module = FlexiCodec(TINY_CODEC, TINY_SENSEVOICE, front_end(golden))
    wanted = module.state_dict().keys()
    module.load_state_dict({key: value for key, value in golden.weights("codec_tiny").items() if key in wanted})
    return module.eval()


def check_codec(golden: Golden) -> Computed:
    tensors, module = golden["codec_tiny"], codec(golden)
    audio = tensors["in.audio"][0]
    features = module.features(audio)
    semantic = module.semantic_model(features)
    frames = module.semantic_frames(semantic)
    yield "in.features", features
    yield "semantic_before_resampling", semantic.transpose(1, 2)
    yield "semantic_12hz", frames.transpose(1, 2)
    yield "sim", neighbour_similarity(frames[0])[None]
    for threshold in THRESHOLDS:
        yield from _codes_and_sound(module, f"t{threshold}.", audio, threshold)
    for threshold in (1.0, 0.9):
        yield from _stages(module, f"t{threshold}.", audio, frames, threshold)
    yield "max3_t0.8.token_lengths", group_frames(frames[0], 0.8, 12.5, max_group=3).lengths[None]
    yield "t0.5.token_lengths", module.merge(frames[0], 0.5)[None]
    yield from _padded_batch(module, tensors)


def _codes_and_sound(module: FlexiCodec, name: str, audio: Tensor, threshold: float) -> Computed:
    codes = module.encode(audio, threshold, quantizers=5)
    assert codes.acoustic is not None
    yield f"{name}token_lengths", codes.durations[None]
    yield f"{name}semantic_codes", codes.semantic[None, None]
    yield f"{name}acoustic_codes", codes.acoustic[None]
    yield f"{name}waveform", module.decode(codes)[None, None]
    yield f"{name}waveform_semantic_only", module.decode(SpeechCodes(codes.semantic, None, codes.durations))[None, None]


def _stages(module: FlexiCodec, name: str, audio: Tensor, frames: Tensor, threshold: float) -> Computed:
    durations = module.merge(frames[0], threshold)[None]
    latents = module.dac.encoder(audio[None, None])
    yield f"{name}dac_encoder.out", latents
    latents = latents.transpose(1, 2)[:, : frames.shape[1]]
    for kind, aggregator, x in (
        ("semantic", module.semantic_aggregator, frames),
        ("acoustic", module.acoustic_aggregator, latents),
    ):
        yield f"{name}{kind}_queries_interleaved", aggregator.interleave(x, durations)[0].transpose(1, 2)
        yield f"{name}{kind}_aggregated", aggregator(x, durations).transpose(1, 2)
    encoded = module.convnext_encoder(module.semantic_aggregator(frames, durations))
    fsq = module.semantic_vq.fsq
    yield f"{name}convnext_encoder.out", encoded.transpose(1, 2)
    yield f"{name}fsq.projected", fsq.project(encoded)
    yield f"{name}fsq.out", fsq(encoded)[0].transpose(1, 2)
    meaning = module.convnext_decoder(fsq(encoded)[0])
    yield f"{name}convnext_decoder.out", meaning.transpose(1, 2)
    rest = (module.acoustic_aggregator(latents, durations) - meaning).transpose(1, 2)
    yield f"{name}rvq.in", rest
    _, total, _ = module.dac.quantizer.encode(rest, 4)
    yield f"{name}rvq.out", total
    joined = (meaning + total.transpose(1, 2)).repeat_interleave(durations[0], dim=1)
    yield f"{name}bottleneck.in", joined.transpose(1, 2)
    narrow = module.bottleneck_transformer(joined)
    yield f"{name}bottleneck.out", narrow.transpose(1, 2)
    yield f"{name}dac_decoder.out", module.dac.decoder(narrow.transpose(1, 2))


def _padded_batch(module: FlexiCodec, tensors: dict[str, Tensor]) -> Computed:
    """The original's batch: padding frames are groups of their own and are attended to, but give no aggregate."""
    if "batch.audio" not in tensors:
        return
    frames = module.semantic_frames(module.semantic_model(tensors["batch.features"]))
    latents = module.dac.encoder(tensors["batch.audio"][:, None]).transpose(1, 2)[:, : frames.shape[1]]
    valid = [resampled_length(int(length)) for length in tensors["batch.feature_lengths"]]
    similarity, lengths, counts = [], [], []
    for row, count in zip(frames, valid, strict=True):
        cosine = neighbour_similarity(row)
        cosine[count - 1 :] = 0.0
        groups = group_frames(row[:count], 0.9, 12.5, max_group=8).lengths
        similarity.append(cosine)
        counts.append(groups.shape[0])
        lengths.append(torch.cat((groups, groups.new_ones(row.shape[0] - count))))
    durations = torch.nn.utils.rnn.pad_sequence(lengths, batch_first=True)
    yield "batch.sim", torch.stack(similarity)
    yield "batch.token_lengths", durations
    yield "batch.total_frames", torch.tensor(counts)
    real = (torch.arange(durations.shape[1]) < torch.tensor(counts)[:, None])[:, :, None]

    def aggregate(aggregator: QueryAggregator, x: Tensor) -> Tensor:
        sequence, places, _ = aggregator.interleave(x, durations)
        out = aggregator.transformer(sequence)
        return out.gather(1, places[:, :, None].expand(-1, -1, out.shape[2])) * real

    codes, meaning = module.code_semantics(aggregate(module.semantic_aggregator, frames))
    rest = (aggregate(module.acoustic_aggregator, latents) - meaning).transpose(1, 2)
    yield "batch.semantic_codes", codes[:, None]
    yield "batch.acoustic_codes", module.dac.quantizer.encode(rest, 4)[0]


def check_fixed_ratio(golden: Golden) -> Computed:
    module = codec(golden)
    audio = golden["codec_tiny_fixed_ratio"]["in.audio"][0]
    features = module.features(audio)
    semantic = module.semantic_model(features)
    frames = FrameResampler(64)(semantic)
    yield "in.features", features
    yield "semantic_before_resampling", semantic.transpose(1, 2)
    yield "semantic_12hz", frames.transpose(1, 2)
    yield "sim", neighbour_similarity(frames[0])[None]
    yield from _codes_and_sound(module, "", audio, 0.9)


CHECKS: dict[str, Check] = {
    "frontend": check_frontend,
    "sensevoice_tiny": check_sensevoice,
    "transformer_tiny": check_transformer,
    "transformer_noproj_tiny": check_transformer_noproj,
    "aggregator_tiny": check_aggregator,
    "fsq_tiny": check_fsq,
    "fsq_mixed_levels": check_fsq_mixed,
    "rvq_tiny": check_rvq,
    "dac_tiny": check_dac,
    "codec_tiny": check_codec,
    "codec_tiny_fixed_ratio": check_fixed_ratio,
    **golden_speech.CHECKS,
}


def run(folder: Path) -> list[TensorResult]:
    """Every fixture of the family that the folder holds, tensor by tensor."""
    golden = Golden(folder)
    return [result for fixture in CHECKS if golden.has(fixture) for result in run_fixture(golden, fixture, CHECKS)]
