"""Files of one small network each: those of a voice (codec, flow decoder, vocoder) and the end-of-turn head;
safetensors whose metadata holds the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from streaming.flexicodec.codec import CodecConfig, SpeechCodec
from streaming.hearing.turn_end import TurnEnd, TurnEndConfig
from streaming.layers.compact import compact, expand
from streaming.speaking.flow import FlowConfig, Voicebox
from streaming.speaking.vocos import Vocos, VocosConfig

Config = TypeVar("Config", bound=msgspec.Struct)
Network = TypeVar("Network", bound=nn.Module)


class VoiceFileError(ValueError):
    """A voice file is missing, damaged or of another make; the message names it and says what to do."""


def save_network(network: nn.Module, config: msgspec.Struct, path: Path) -> None:
    """Compact weights and the configuration in one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(compact(network.state_dict()), path, metadata={"config": msgspec.json.encode(config).decode()})
    path.chmod(0o644)


def load_codec(path: Path) -> SpeechCodec:
    return _load(path, CodecConfig, SpeechCodec)


def load_flow(path: Path) -> Voicebox:
    return _load(path, FlowConfig, Voicebox)


def load_vocoder(path: Path) -> Vocos:
    return _load(path, VocosConfig, Vocos)


def load_turn_end(path: Path) -> TurnEnd:
    return _load(path, TurnEndConfig, TurnEnd).requires_grad_(False)


def _load(path: Path, kind: type[Config], network_class: type[Network]) -> Network:
    try:
        with safe_open(path, "pt") as file:
            config = msgspec.json.decode((file.metadata() or {}).get("config", ""), type=kind)
            weights = expand({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        network = network_class(config)
        network.load_state_dict(weights)
    except FileNotFoundError as error:
        raise VoiceFileError(f"{path} is missing; restore the model's files") from error
    except (SafetensorError, msgspec.DecodeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        kind_name = network_class.__name__
        raise VoiceFileError(f"{path} is not a usable {kind_name} file ({reason}); fetch it again") from error
    return network.eval()
