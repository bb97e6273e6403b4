"""A pipeline of the real classes with few, random weights."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from torch import nn

import models
from models.checkpoints.flexislm_checkpoint import official_key
from models.checkpoints.packing import save_packed
from models.checkpoints.voice_files import save_network
from models.networks.config import parse_config
from models.networks.flexislm import FlexiSLM
from models.networks.tokenizer import TextTokenizer
from streaming.flexicodec.codec import CodecConfig, SpeechCodec
from streaming.hearing.encoder import BlockCausalEncoder, EncoderConfig
from streaming.merging.causal_merger import CausalMerger
from streaming.merging.rate_control import RateController
from streaming.speaking.flow import FlowConfig, Voicebox
from streaming.speaking.flow_decoder import FlowDecoder, FlowDials
from streaming.speaking.unmerge import UnmergeConfig
from streaming.speaking.vocos import Vocos, VocosConfig
from worker.ears.block import BlockEar
from worker.pipeline import Networks, Pipeline
from worker.voices.embedded import EmbeddedVoice

CODES = 64
WIDTH = 32

CONFIG = {
    "vocab_size": 1024,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
    "audio_vocab_size": CODES,
    "talker_hidden_size": WIDTH,
    "talker_num_layers": 2,
    "talker_num_attention_heads": 2,
    "talker_intermediate_size": 64,
    "no_pad": True,
    "use_combined_embedding": False,
    "use_sinusoidal": True,
    "per_sample_frame_rate_embed": True,
    "use_input_merging_transformer": True,
    "use_input_merging_transformer_v2": True,
    "input_merging_transformer_num_layers": 1,
    "input_merging_transformer_num_heads": 2,
    "input_merging_transformer_dim_feedforward": 64,
    "input_merging_transformer_causal": True,
    "agogic": {"alignment_head": [1, 0], "prompts": {"perceives": "", "text": "", "history": "last_answer"}},
}


@cache
def networks(seed: int = 0) -> Networks:
    torch.manual_seed(seed)
    config = parse_config(msgspec.json.encode(CONFIG), "tiny")
    slm = awake(FlexiSLM(config, WIDTH))
    directory = Path(models.__file__).parent / "embedded"
    tokenizer = TextTokenizer.load(directory)
    encoder = awake(
        BlockCausalEncoder(EncoderConfig(hidden_size=WIDTH, layers=2, heads=2, feed_forward=64, middle_layer=1))
    )
    merger = CausalMerger(slm.input_merging_transformer, nn.Identity(), RateController(25.0, 16))
    unmerge = UnmergeConfig(WIDTH, 1, 2, 64, 16, 2, 1)
    flow = FlowConfig(
        hidden=WIDTH,
        num_layers=2,
        num_heads=2,
        ffn_dim=64,
        mlp_dim=64,
        codebook_size=CODES,
        chunk_frames=8,
        context_chunks=2,
        unmerge=unmerge,
    )
    decoder = FlowDecoder(awake(Voicebox(flow)), FlowDials()).eval()
    vocoder = awake(Vocos(VocosConfig(dim=WIDTH, hidden=64, num_layers=2, causal=True, look_ahead_frames=2)))
    ear = BlockEar(encoder, merger, lambda path: tokenizer.decode(path).strip())
    return Networks("tiny", slm, tokenizer, ear, EmbeddedVoice(decoder, vocoder), draws=False)


def save(directory: Path) -> Path:
    """The tiny networks as a model directory, laid out like `models/embedded`."""
    parts = networks()
    directory.mkdir(parents=True, exist_ok=True)
    ear, voice = parts.ear, parts.voice
    assert isinstance(ear, BlockEar) and isinstance(voice, EmbeddedVoice)
    encoder = ear.encoder
    config = {**CONFIG, "agogic": {**CONFIG["agogic"], "encoder": msgspec.to_builtins(encoder.config)}}
    (directory / "config.json").write_bytes(msgspec.json.encode(config))
    shutil.copy(Path(models.__file__).parent / "embedded" / "tokenizer.json", directory)
    state = {official_key(name): value for name, value in parts.slm.state_dict().items()}
    del state["lm_head.weight"]  # tied
    save_file({name: value.contiguous() for name, value in state.items()}, directory / "model.safetensors")
    save_packed(encoder.state_dict(), directory / "encoder.safetensors")
    codec = CodecConfig(dim=WIDTH, vector_dim=WIDTH, num_heads=2, ffn_dim=64, encoder_layers=1, aggregator_layers=1)
    save_network(SpeechCodec(codec), codec, directory / "codec.safetensors")
    save_network(voice.flow.voicebox, voice.flow.voicebox.config, directory / "flow.safetensors")
    save_network(voice.vocoder, voice.vocoder.config, directory / "vocoder.safetensors")
    return directory


def pipeline(sessions: int = 2) -> Pipeline:
    return Pipeline(networks(), sessions)


def awake(module: nn.Module) -> nn.Module:
    """Weights large enough that every input matters to the output."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.6 / parameter.shape[-1] ** 0.5)
    for name, parameter in module.named_parameters():
        if name.endswith("scale"):
            nn.init.ones_(parameter)
    return module.requires_grad_(False).eval()
