"""Last step: a finished run of `training.slm` becomes `models/embedded`: config, tokenizer, language model and encoder.

Codec, flow decoder and vocoder are written by their own stages into the same directory.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from models.checkpoints.export import export_flexislm
from models.checkpoints.packing import save_packed
from models.networks.config import AgogicConfig, FlexiSLMConfig
from models.networks.flexislm import FlexiSLM
from streaming.hearing.encoder import EncoderConfig
from training.slm import (
    ALIGNMENT_HEAD,
    MAX_GROUP,
    SlmConfig,
    SlmTraining,
    merger_config,
    talker_config,
    thinker_config,
)
from training.slm_data import prompts_with


class AssembleConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`slm` configured the run whose `checkpoint` (its own, or that of the Talker's stage) is assembled."""

    slm: str
    checkpoint: str
    directory: str


def embedded_config(vocabulary: int, slm: SlmConfig) -> FlexiSLMConfig:
    """FlexiSLM's own configuration at the embedded size: Stage 2, causal merger, and our additions."""
    thinker, talker, merger = thinker_config(vocabulary), talker_config(slm.codes_count), merger_config()
    return FlexiSLMConfig(
        vocab_size=vocabulary,
        hidden_size=thinker.hidden_size,
        intermediate_size=thinker.intermediate_size,
        num_hidden_layers=thinker.num_layers,
        num_attention_heads=thinker.num_heads,
        num_key_value_heads=thinker.num_kv_heads,
        rope_theta=thinker.rope_theta,
        tie_word_embeddings=True,
        audio_vocab_size=slm.codes_count,
        codec_hidden_size=EncoderConfig().hidden_size,
        talker_hidden_size=talker.hidden_size,
        talker_num_layers=talker.num_layers,
        talker_num_attention_heads=talker.num_heads,
        talker_intermediate_size=talker.intermediate_size,
        speech_delay_tokens=slm.delay_tokens,
        no_pad=True,
        use_combined_embedding=False,
        use_input_merging_transformer_v2=True,
        input_merging_transformer_num_layers=merger.num_layers,
        merger_d_model=merger.d_model,
        input_merging_transformer_num_heads=merger.num_heads,
        input_merging_transformer_dim_feedforward=merger.ffn_dim,
        input_merging_transformer_context=merger.context,
        input_merging_transformer_causal=True,
        agogic=AgogicConfig(
            alignment_head=(ALIGNMENT_HEAD.layer, ALIGNMENT_HEAD.head),
            max_group_frames=MAX_GROUP,
            delay_is_given=True,
            longest_answer_s=15.0,
            prompts=prompts_with(slm.history),
            encoder=msgspec.Raw(msgspec.json.encode(EncoderConfig())),
        ),
    )


def assemble(config: AssembleConfig) -> None:
    """Writes config.json, model.safetensors, tokenizer.json (kept) and encoder.safetensors."""
    slm = msgspec.toml.decode(Path(config.slm).read_bytes(), type=SlmConfig)
    run = SlmTraining(msgspec.structs.replace(slm, output=config.checkpoint))
    trained, encoder = run.averaged()
    vocabulary = run.data.tokenizer.get_vocab_size()
    model = FlexiSLM(embedded_config(vocabulary, slm), EncoderConfig().hidden_size)
    model.thinker.load_state_dict(trained.thinker.state_dict())
    model.talker_model.load_state_dict(trained.talker.state_dict())
    model.input_merging_transformer.load_state_dict(trained.merger.state_dict())
    directory = Path(config.directory)
    export_flexislm(model.eval(), Path(slm.tokenizer), directory, dtype=torch.float16)
    save_packed(encoder.state_dict(), directory / "encoder.safetensors")
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    print(f"{directory}: {size / 1e6:.1f} MB of weights after {run.minutes:.0f} minutes, {run.step} steps")


def main(config_path: Path) -> None:
    """`agogic train assemble --config FILE`."""
    assemble(msgspec.toml.decode(config_path.read_bytes(), type=AssembleConfig))
