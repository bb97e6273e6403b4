"""The full-size networks, on the meta device, have exactly the keys and shapes of the released checkpoints."""

from __future__ import annotations

import torch
from torch import nn

from streaming.flexicodec.artts import ArTts, ArTtsConfig
from streaming.flexicodec.fbank import FEATURES, SenseVoiceFrontEnd
from streaming.flexicodec.flexicodec import FlexiCodec, FlexiCodecConfig
from streaming.flexicodec.sensevoice import SenseVoiceConfig, SenseVoiceEncoder
from streaming.speaking.flow import FlowConfig, Voicebox
from streaming.speaking.vocos import Vocos, VocosConfig
from tests.support.official_keys import folded, official_keys

Shapes = dict[str, tuple[int, ...]]


def shapes_of(module: nn.Module) -> Shapes:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def under(shapes: Shapes, prefix: str) -> Shapes:
    return {key.removeprefix(prefix): size for key, size in shapes.items() if key.startswith(prefix)}


def test_flexicodec() -> None:
    with torch.device("meta"):
        front_end = SenseVoiceFrontEnd(torch.zeros(FEATURES), torch.ones(FEATURES))
        module = FlexiCodec(FlexiCodecConfig(), SenseVoiceConfig(), front_end)
    ours = shapes_of(module)
    codec = {key: size for key, size in ours.items() if not key.startswith("semantic_model.")}
    official = folded(official_keys("flexicodec_codec"))
    assert set(official) - set(codec) == {"semantic_mean", "semantic_std"}
    assert codec == {key: size for key, size in official.items() if key in codec}
    # The copy of SenseVoice inside is the separate one under a prefix.
    with torch.device("meta"):
        assert under(ours, "semantic_model.") == shapes_of(SenseVoiceEncoder(SenseVoiceConfig()))


def test_sensevoice() -> None:
    with torch.device("meta"):
        ours = shapes_of(SenseVoiceEncoder(SenseVoiceConfig(tp_blocks=20)))
    official = official_keys("sensevoice_small")
    assert set(official) - set(ours) == {"ctc.ctc_lo.weight", "ctc.ctc_lo.bias"}
    assert ours == {key: size for key, size in official.items() if key in ours}


def test_voicebox() -> None:
    with torch.device("meta"):
        ours = shapes_of(Voicebox(FlowConfig()))
    assert ours == under(official_keys("nartts_voicebox"), "voicebox_model.")


def test_vocos() -> None:
    with torch.device("meta"):
        ours = shapes_of(Vocos(VocosConfig()))
    assert ours == official_keys("vocos")


def test_artts() -> None:
    with torch.device("meta"):
        ours = shapes_of(ArTts(ArTtsConfig()))
    assert ours == under(official_keys("artts"), "transformer_lm.")
