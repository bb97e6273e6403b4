"""`agogic bench codec`: FlexiCodec at full size, random weights, against the published package: equality and speed.

Both codecs get the same weights and are run in turn within one process; the best round of each counts. Theirs is given
the features that ours computes, because its extractor is funasr's; so ours does that much more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.official.published_flexicodec import NotInstalledError, PublishedCodec
from kernels.packed_linear import pack_linears
from streaming.flexicodec.fbank import FEATURES, SenseVoiceFrontEnd
from streaming.flexicodec.flexicodec import FlexiCodec, FlexiCodecConfig, SpeechCodes
from streaming.flexicodec.sensevoice import SenseVoiceConfig
from streaming.layers.weight_norm import fold_weight_norm
from streaming.merging.grouping import neighbour_similarity

QUANTIZERS = 8


class _Published:
    """The package's codec, its codes in our form."""

    def __init__(self, codec: PublishedCodec, audio: Tensor, features: Tensor) -> None:
        self.codec, self.audio, self.features = codec, audio, features
        self.threshold = 1.0

    def encode(self) -> SpeechCodes:
        codes = self.codec.encode(self.audio[None], self.features, QUANTIZERS, self.threshold)
        lengths = codes["token_lengths"][0]
        return SpeechCodes(codes["semantic_codes"][0, 0].long(), codes["acoustic_codes"][0], lengths.long())

    def decode(self, codes: SpeechCodes) -> Tensor:
        assert codes.acoustic is not None
        raw = {
            "semantic_codes": codes.semantic[None, None].int(),
            "acoustic_codes": codes.acoustic[None],
            "token_lengths": codes.durations[None],
        }
        return self.codec.decode(raw)[0, 0]


def run(seconds: float = 5.0, threads: int = 1, rounds: int = 3) -> dict[str, object]:
    """Real-time factors (compute seconds per second of speech), and the package's where it is installed."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    audio = _speechlike(seconds)
    front_end = SenseVoiceFrontEnd(torch.zeros(FEATURES), torch.full((FEATURES,), 0.2))
    ours = FlexiCodec(FlexiCodecConfig(), SenseVoiceConfig(), front_end).eval()
    report: dict[str, object] = {"speech_s": seconds, "threads": threads, "load_average": round(os.getloadavg()[0], 2)}
    try:
        published = _Published(PublishedCodec(), audio, front_end(audio[None]))
    except NotInstalledError as error:
        published = None
        report["published"] = str(error)
    with torch.inference_mode():
        if published is not None:
            _share_weights(published.codec.module, ours)
        pack_linears(ours)
        threshold = _halving_threshold(ours, audio)
        codes = ours.encode(audio, threshold, QUANTIZERS)
        sides = {"": (lambda: ours.encode(audio, threshold, QUANTIZERS), lambda: ours.decode(codes))}
        if published is not None:
            published.threshold = threshold
            report |= _difference(codes, ours.decode(codes), published)
            sides["published_"] = (published.encode, lambda: published.decode(codes))
        times: dict[str, list[float]] = {}
        for _ in range(rounds):
            for side, (encode, decode) in sides.items():
                times.setdefault(f"{side}encode_real_time_factor", []).append(_timed(encode) / seconds)
                times.setdefault(f"{side}decode_real_time_factor", []).append(_timed(decode) / seconds)
    best = {name: min(values) for name, values in times.items()}
    report |= {name: round(value, 3) for name, value in best.items()}
    if published is not None:
        for step in ("encode", "decode"):
            report[f"{step}_speedup"] = round(
                best[f"published_{step}_real_time_factor"] / best[f"{step}_real_time_factor"], 2
            )
    return report


def _halving_threshold(codec: FlexiCodec, audio: Tensor) -> float:
    """The similarity that half of the neighbours exceed: random weights know no other scale."""
    frames = codec.semantic_frames(codec.semantic_model(codec.features(audio)))
    ordered = neighbour_similarity(frames[0]).sort().values
    middle = len(ordered) // 2
    return float(ordered[middle - 1 : middle + 1].mean())


def _share_weights(published: nn.Module, ours: FlexiCodec) -> None:
    # Fresh layer scales are 0.01, which would hide whatever the transformers do.
    for name, value in published.state_dict().items():
        if "layer_scale" in name:
            value.uniform_(0.2, 0.6)
    wanted = ours.state_dict().keys()
    ours.load_state_dict(
        {key: value for key, value in fold_weight_norm(published.state_dict()).items() if key in wanted}
    )


def _difference(codes: SpeechCodes, sound: Tensor, published: _Published) -> dict[str, object]:
    theirs = published.encode()
    assert codes.acoustic is not None and theirs.acoustic is not None
    if not torch.equal(codes.durations, theirs.durations):
        return {"equal_durations": False}
    reference = published.decode(codes)
    return {
        "tokens": len(codes.semantic),
        "equal_durations": True,
        "different_semantic_codes": int((codes.semantic != theirs.semantic).sum()),
        "different_acoustic_codes": int((codes.acoustic != theirs.acoustic).sum()),
        "waveform_relative_error": float((sound - reference).norm() / reference.norm()),
    }


def _speechlike(seconds: float) -> Tensor:
    """Noise whose loudness and colour change a few times a second, so that some neighbours merge: [N] at 16 kHz."""
    count = int(seconds * 16_000)
    slow = torch.nn.functional.interpolate(torch.rand(1, 2, max(2, int(seconds * 4))), size=count, mode="linear")[0]
    tone = torch.sin(torch.cumsum(slow[0] * 0.3, dim=0))
    return (slow[1] * (0.1 * tone + 0.03 * torch.randn(count))).clamp(-1, 1)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
