"""The published `flexicodec` package, for comparison side by side: built at full size with random weights.

`pip install --no-deps flexicodec einops easydict` is enough: what else it imports is for training, for loading from the
hub or for its feature extractor, and is replaced by empty stand-ins here.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch
from torch import Tensor, nn

SENSEVOICE_SMALL = {
    "output_size": 512,
    "attention_heads": 4,
    "linear_units": 2048,
    "num_blocks": 50,
    "tp_blocks": 20,
    "dropout_rate": 0.1,
    "positional_dropout_rate": 0.1,
    "attention_dropout_rate": 0.1,
    "kernel_size": 11,
    "sanm_shfit": 0,
    "normalize_before": True,
}
SHIPPED_CODEC: dict[str, object] = {
    "sample_rate": 16_000,
    "encoder_dim": 32,
    "encoder_rates": [4, 4, 5, 8, 2],
    "decoder_rates": [2, 8, 5, 4, 4],
    "n_codebooks": 24,
    "codebook_size": 4096,
    "semantic_codebook_size": 32_768,
    "is_causal": False,
    "use_similarity_alignment": True,
    "similarity_threshold": 0.91,
    "semantic_downsample_factor": 1.33333,
    "latent_dim": 512,
    "ssl_dim": 512,
    "use_bottleneck_transformer": True,
    "transformer_num_layers": 32,
    "use_query_token_aggregator": True,
}
# Names that the package imports and that encoding and decoding never reach.
UNUSED_NAMES = {
    "audiotools": ("AudioSignal",),
    "funasr.utils.datadir_writer": ("DatadirWriter",),
    "funasr.models.paraformer.search": ("Hypothesis",),
    "funasr.train_utils.device_funcs": ("force_gatherable",),
    "funasr.metrics.compute_acc": ("compute_accuracy", "th_accuracy"),
    "funasr.utils.load_utils": ("load_audio_text_image_video", "extract_fbank"),
    "torchaudio.functional.functional": ("_hz_to_mel", "_mel_to_hz"),
}


class NotInstalledError(Exception):
    """The package is not there."""


class _Tables:
    """FunASR's registry: classes by kind and name."""

    def __init__(self) -> None:
        self.encoder_classes: dict[str, type] = {}
        self.model_classes: dict[str, type] = {}

    def register(self, kind: str, name: str):  # type: ignore[no-untyped-def]
        def keep(cls: type) -> type:
            getattr(self, kind)[name] = cls
            return cls

        return keep


class _Ctc(nn.Module):
    def __init__(self, odim: int, encoder_output_size: int) -> None:
        super().__init__()
        self.ctc_lo = nn.Linear(encoder_output_size, odim)


class _Nothing(nn.Module):
    """A loss: only training computes it."""

    def __init__(self, **_: object) -> None:
        super().__init__()


class _AutoModel:
    """SenseVoiceSmall with random weights in place of a download."""

    def __init__(self, **_: object) -> None:
        module = importlib.import_module("flexicodec.customized_sensevoice.model")
        self.model = module.SenseVoiceSmall(
            encoder="SenseVoiceEncoderSmall", encoder_conf=SENSEVOICE_SMALL, input_size=560, vocab_size=25_055
        )


class PublishedCodec:
    """Encoding from features and decoding, as the package's own `encode_flexicodec` and `decode_from_codes`."""

    def __init__(self) -> None:
        # transformers looks at what is installed and must not see the stand-ins.
        importlib.import_module("transformers").Wav2Vec2BertModel  # noqa: B018
        _stand_ins()
        try:
            modeling = importlib.import_module("flexicodec.modeling_flexicodec")
        except ModuleNotFoundError as error:
            raise NotInstalledError(
                f"{error.name} is missing; for the comparison: pip install --no-deps flexicodec einops easydict"
            ) from None
        self.module: nn.Module = modeling.FlexiCodec(**SHIPPED_CODEC).eval()

    def encode(self, audio: Tensor, features: Tensor, quantizers: int, threshold: float) -> dict[str, Tensor]:
        """audio [1, N], features [1, T, 560] -> semantic_codes, acoustic_codes, token_lengths."""
        request = {
            "audio": audio,
            "x": features.clone(),
            "x_lens": torch.tensor([features.shape[1]]),
            "num_quantizers": quantizers,
            "manual_threshold": threshold,
        }
        return self.module(request, encode_only=True)  # type: ignore[no-any-return]

    def decode(self, codes: dict[str, Tensor]) -> Tensor:
        return self.module.decode_from_codes(  # type: ignore[operator, no-any-return]
            codes["semantic_codes"], codes["acoustic_codes"], token_lengths=codes["token_lengths"]
        )


def _stand_ins() -> None:
    for name, members in UNUSED_NAMES.items():
        _module(name, **dict.fromkeys(members, object))
    _module("audiotools.ml", BaseModel=nn.Module)
    _module("funasr", AutoModel=_AutoModel)
    _module("funasr.register", tables=_Tables())
    _module("funasr.models.ctc.ctc", CTC=_Ctc)
    _module("funasr.losses.label_smoothing_loss", LabelSmoothingLoss=_Nothing)


def _module(name: str, **members: object) -> None:
    """Put a module of that name, and its parents, where the package will find them."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:depth]), ModuleType(".".join(parts[:depth])))
    for key, value in members.items():
        setattr(sys.modules[name], key, value)
