"""The released FlexiSLM checkpoints without their weights: configurations as published, sizes as they are."""

from __future__ import annotations

from typing import Literal

import msgspec

from models.networks.config import FlexiSLMConfig, parse_config

Size = Literal["0.5B", "7B"]

ENCODER_DIM = 3584
"""Width of the audio encoder's frames."""

_RECIPE: dict[str, object] = {
    "vocab_size": 151_944,
    "rope_theta": 1e6,
    "use_sinusoidal": True,
    "per_sample_frame_rate_embed": True,
    "talker_concat_lm_text_output": True,
    "use_input_merging_transformer": True,
    "use_input_merging_transformer_v2": True,
    "input_merging_transformer_d_model": 768,
    "use_mlp_for_audio_embed": True,
    "talker_hidden_size": 1280,
    "talker_intermediate_size": 5120,
    "no_pad": True,
    "use_combined_embedding": False,
    "use_qwen25o_feature": True,
}
_SIZES: dict[Size, dict[str, object]] = {
    "7B": {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18_944,
    },
    "0.5B": {
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "tie_word_embeddings": True,
    },
}


def released_json(size: Size, changes: dict[str, object] | None = None) -> bytes:
    """config.json of the Stage 2 checkpoint of that size, with `changes`."""
    return msgspec.json.encode(_RECIPE | _SIZES[size] | (changes or {}))


def released_config(size: Size, changes: dict[str, object] | None = None) -> FlexiSLMConfig:
    return parse_config(released_json(size, changes), f"{size} config")
