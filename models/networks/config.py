"""config.json of a FlexiSLM checkpoint, typed (FlexiSLM section 1).

Switches we do not know are refused, not ignored.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from models.errors import CheckpointError
from models.networks.prompts import Prompts
from models.networks.qwen2 import DecoderConfig, HeadOfLayer
from streaming.layers.transformer import TransformerConfig
from streaming.merging.merger import merger_mode

ENCODER_RATE_HZ = 25.0
OFFICIAL_MAX_GROUP_FRAMES = 16
RELEASED_HEAD_DIMS = (64, 128, 160)
"""Of the Thinkers of 0.5B and 7B, and of the Talker of both."""

_UNSUPPORTED = (
    "use_sensevoice_feature",
    "use_qwen3_feature",
    "use_whisper_fetaure",
    "use_joint_text_audio_vocab",
    "use_concat_len_emb",
    "talker_embed_v2",
    "early_diverge_talker",
    "extend_lm_head",
    "predict_second_audio_token",
    "use_learnable_prefix",
    "use_chained_architecture",
    "use_attention_gating",
    "uniform_merging",
    "output_uniform_merging",
    "thinker_concat_user_speech",
    "use_sliding_window",
)
"""Switches that would change the network; each must be off."""

_REQUIRED = {
    "use_sinusoidal": False,
    "per_sample_frame_rate_embed": False,
    "talker_concat_lm_text_output": True,
    "use_learnable_audio_boundary": True,
    "use_input_merging_transformer": False,
}
"""Switches that must be on, and what the original takes where they are missing."""

_HARMLESS = {
    "add_length_embeddings",
    "enable_flexible_framerate",
    "finetune_speech_encoder",
    "freeze_llm",
    "freeze_talker",
    "is_encoder_decoder",
    "only_train_llm",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torchscript",
    "use_cache",
    "use_omni_token",
    "use_qwen25o_feature",
}
"""Further switches that may be on without changing what is computed."""


class RopeParameters(msgspec.Struct, frozen=True):
    rope_theta: float = 1_000_000.0
    rope_type: str = "default"


class AgogicConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Our own additions, absent from official checkpoints; the parts' configs are read by their owners.

    delay_is_given: the first `speech_delay_tokens` speech tokens are START by rule; the Talker is not asked for them
    and reads them in one piece. longest_answer_s: what lasts longer has gone astray and is cut.
    """

    delay_is_given: bool = False
    longest_answer_s: float = 120.0
    alignment_head: tuple[int, int] | None = None
    max_group_frames: int = OFFICIAL_MAX_GROUP_FRAMES
    prompts: Prompts = Prompts()
    encoder: msgspec.Raw = msgspec.Raw(b"null")
    codec: msgspec.Raw = msgspec.Raw(b"null")
    flow: msgspec.Raw = msgspec.Raw(b"null")
    vocoder: msgspec.Raw = msgspec.Raw(b"null")


class FlexiSLMConfig(msgspec.Struct, frozen=True, rename={"merger_d_model": "input_merging_transformer_d_model"}):
    """The keys of `config.json` that inference reads; missing ones take the original's class defaults."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_parameters: RopeParameters | None = None
    tie_word_embeddings: bool = False
    audio_vocab_size: int = 32768
    max_length_classes: int = 32
    codec_hidden_size: int = 768
    use_mlp_for_audio_embed: bool = False
    audio_embed_mlp_hidden_ratio: float = 4.0
    talker_hidden_size: int | None = None
    talker_num_layers: int = 20
    talker_num_attention_heads: int = 8
    talker_intermediate_size: int | None = None
    speech_delay_tokens: int = 5
    no_pad: bool = False
    only_train_talker: bool = False
    use_combined_embedding: bool = True
    force_use_combined_embedding: bool = False
    use_lora: bool = False
    lora_alpha: float | None = None
    use_input_merging_transformer_v2: bool = False
    input_merging_transformer_num_layers: int = 4
    merger_d_model: int = 0
    input_merging_transformer_num_heads: int = 8
    input_merging_transformer_dim_feedforward: int = 2048
    input_merging_transformer_context: int = 32
    input_merging_transformer_causal: bool = False
    agogic: AgogicConfig = AgogicConfig()

    @property
    def thinker(self) -> DecoderConfig:
        return DecoderConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_key_value_heads,
            rope_theta=self.rope_base,
            rms_norm_eps=self.rms_norm_eps,
        )

    @property
    def talker(self) -> DecoderConfig:
        """Multi-head (no grouping), rope base of the Thinker, epsilon 1e-6 (section 2.4)."""
        hidden = self.talker_hidden_size or self.hidden_size
        return DecoderConfig(
            vocab_size=3 + self.audio_vocab_size,
            hidden_size=hidden,
            intermediate_size=self.talker_intermediate_size or 4 * hidden,
            num_layers=self.talker_num_layers,
            num_heads=self.talker_num_attention_heads,
            num_kv_heads=self.talker_num_attention_heads,
            rope_theta=self.rope_base,
        )

    @property
    def merger(self) -> TransformerConfig:
        return TransformerConfig(
            input_dim=self.hidden_size,
            d_model=self.merger_d_model or self.hidden_size,
            num_heads=self.input_merging_transformer_num_heads,
            num_layers=self.input_merging_transformer_num_layers,
            ffn_dim=self.input_merging_transformer_dim_feedforward,
            output_dim=self.hidden_size,
            mode=merger_mode(self.input_merging_transformer_causal),
            context=self.input_merging_transformer_context,
        )

    @property
    def rope_base(self) -> float:
        if self.rope_theta is not None:
            return self.rope_theta
        return (self.rope_parameters or RopeParameters()).rope_theta

    @property
    def thinker_hears_speech(self) -> bool:
        """Stage 3: the Thinker's input also holds speech, length and rate (section 4.4)."""
        if not self.use_combined_embedding:
            return False
        return self.force_use_combined_embedding or not (self.only_train_talker or self.use_lora)

    @property
    def alignment_head(self) -> HeadOfLayer | None:
        return None if self.agogic.alignment_head is None else HeadOfLayer(*self.agogic.alignment_head)


def read_config(path: Path) -> FlexiSLMConfig:
    """Typed config of `path` (a config.json); raises `CheckpointError` where it cannot be followed."""
    try:
        text = path.read_bytes()
    except OSError as error:
        reason = error.strerror
        raise CheckpointError(f"{path} cannot be read ({reason}); give a directory with a config.json") from None
    return parse_config(text, str(path))


def parse_config(text: bytes, name: str) -> FlexiSLMConfig:
    """As `read_config`, of the file's content; `name` appears in messages."""
    try:
        raw = msgspec.json.decode(text, type=dict[str, object])
        config = msgspec.json.decode(text, type=FlexiSLMConfig)
    except msgspec.MsgspecError as error:
        raise CheckpointError(f"{name} is not a FlexiSLM config: {error}; download it again") from None
    _refuse_unknown_switches(raw, name)
    hidden, heads = config.hidden_size, config.num_attention_heads
    if hidden % heads or heads % config.num_key_value_heads:
        raise CheckpointError(f"{name} has {heads} heads of {config.num_key_value_heads} kv heads for width {hidden}")
    if config.use_lora and config.lora_alpha is None:
        raise CheckpointError(f"{name} sets use_lora without lora_alpha; add the trained value, officially 64")
    return config


def _refuse_unknown_switches(raw: dict[str, object], name: str) -> None:
    known = {field.encode_name for field in msgspec.structs.fields(FlexiSLMConfig)}
    known |= _HARMLESS | set(_REQUIRED)
    for key, value in raw.items():
        if key in _UNSUPPORTED and value not in (False, None, 0):
            raise CheckpointError(f"{name} sets {key}, a variant of the network that agogic lacks; it must be false")
        if value is True and key not in known:
            raise CheckpointError(f"{name} turns on {key}, unknown to agogic; use a released FlexiSLM checkpoint")
    for key, missing in _REQUIRED.items():
        if raw.get(key, missing) is not True:
            raise CheckpointError(f"{name} has {key} off, a variant of the network that agogic lacks; it must be true")
    for key in ("assistant_text_start_delay_tokens", "rope_scaling"):
        if raw.get(key):
            raise CheckpointError(f"{name} sets {key}, a variant of the network that agogic lacks; leave it out")
