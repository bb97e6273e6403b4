"""Golden parity of the speech side of the FlexiCodec family: 24 kHz mel, Voicebox, Vocos, FlexiCodec-TTS."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.golden.files import Check, Computed, Golden
from streaming.flexicodec.artts import ArSampling, ArTts, ArTtsConfig, TimedCodes
from streaming.flexicodec.relative_encoder import RelativeEncoderConfig
from streaming.hearing.resample import sinc_resample
from streaming.speaking.flow import FlowConfig, Voicebox
from streaming.speaking.mel24k import Mel24k
from streaming.speaking.vocos import Vocos, VocosConfig

TINY_FLOW = FlowConfig(hidden=64, num_layers=3, num_heads=4, ffn_dim=256, mlp_dim=256, codebook_size=256)
TINY_ARTTS = ArTtsConfig(
    text=RelativeEncoderConfig(48, 4, 96, 2, "text"),
    language=RelativeEncoderConfig(64, 4, 160, 3, "language"),
    text_vocabulary=120,
    speech_vocabulary=200,
)


def check_audio(golden: Golden) -> Computed:
    for clip, audio in golden.clips("16k"):
        yield f"{clip}_24k", sinc_resample(audio, 16_000, 24_000)


def check_mel24k(golden: Golden) -> Computed:
    module = Mel24k()
    yield "mel_basis", module.filters.T
    yield "window", module.window
    for clip, audio in golden.clips("24k"):
        yield f"{clip}.log_mel", module.log_mel(audio[None])[0].T
        yield f"{clip}.mel_normalised", module(audio[None])[0].T


def check_voicebox(golden: Golden) -> Computed:
    tensors = golden["voicebox_tiny"]
    module = Voicebox(TINY_FLOW)
    module.load_state_dict(golden.weights("voicebox_tiny"))
    net = module.diff_estimator
    prompt, codes, t = tensors["prompt"], tensors["codes"], tensors["t"]
    condition = module.condition(codes, torch.ones_like(codes))
    yield "cond", condition
    sinusoid: list[Tensor] = []
    hook = net.diff_step_mlp.register_forward_pre_hook(lambda _, inputs: sinusoid.append(inputs[0]))
    yield "time.mlp", net.time_embedding(torch.tensor([0.0, 0.37, 0.9]))
    hook.remove()
    yield "time.sinusoid_0_0.37_0.9", sinusoid[0]
    noise = tensors["noise"]
    mel = torch.cat((prompt, noise), dim=1)
    yield "mel_mlp", net.mel_mlp(mel)
    yield "cond_mlp", net.cond_mlp(condition)
    # What a layer puts out is what the next norm takes in.
    outputs: list[Tensor] = []
    norms = [*(layer.input_layernorm for layer in net.layers[1:]), net.norm]
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: outputs.append(inputs[0])) for norm in norms]
    yield "velocity", net(mel, t, condition)
    for hook in hooks:
        hook.remove()
    for number, output in enumerate(outputs):
        yield f"layer{number}.out", output
    yield "velocity_uncond", net(noise, t, torch.zeros_like(condition[:, prompt.shape[1] :]))
    yield "velocity_masked", net(mel, t, condition, tensors["mask"].bool()[:, None, None, :])
    for name, steps, guidance, rescale in (
        ("cfg0_steps15", 15, 0.0, 0.75),
        ("cfg2_rescale0.75_steps15", 15, 2.0, 0.75),
        ("cfg2_rescale0.75_steps4", 4, 2.0, 0.75),
        ("cfg2_rescale0_steps15", 15, 2.0, 0.0),
    ):
        solved = module.solve(condition, noise, steps=steps, prompt=prompt, guidance=guidance, rescale=rescale)
        yield f"out.{name}", solved
    unprompted = module.solve(condition, tensors["noise_noprompt"], steps=4, guidance=2.0, rescale=0.75)
    yield "out.noprompt_cfg2_rescale0.75_steps4", unprompted


def check_vocos(golden: Golden) -> Computed:
    tensors = golden["vocos_tiny"]
    module = Vocos(VocosConfig(dim=64, hidden=128, num_layers=3))
    module.load_state_dict(golden.weights("vocos_tiny"))
    features = module.features(tensors["in.mel"].transpose(1, 2))
    yield "backbone.out", features
    yield "head.linear", module.head.out(features)
    yield "out.waveform", module(tensors["in.mel"].transpose(1, 2))
    # The second recording starts behind the head's linear layer.
    loud = tensors.get("head.linear_clipped")
    if loud is not None:
        module.head.out.register_forward_hook(lambda *_: loud)
        yield "out.waveform_clipped", module(tensors["in.mel"].transpose(1, 2))


def check_artts(golden: Golden) -> Computed:
    tensors = golden["artts_tiny"]
    module = ArTts(TINY_ARTTS)
    module.load_state_dict(golden.weights("artts_tiny"))
    yield "text_batch.out", module.encode_text(tensors["text_batch"], tensors["text_batch_len"])
    yield "full_sequence_output", module.llm(tensors["full_sequence_input"])
    text, codes, durations = (tensors[key] for key in ("text", "prompt_tokens", "prompt_durations"))
    for rate in TINY_ARTTS.frame_rates:
        name = f"fr{rate}."
        yield f"{name}text_encoder.out", module.text_encoder(module.text_embedding(text))
        yield f"{name}text_affine.out", module.encode_text(text)
        prefix = module.prompt_input(text, rate, codes, durations)
        yield f"{name}prefill_input", prefix
        prompt = TimedCodes(codes[0].tolist(), durations[0].tolist())
        spoken = module.generate(text[0].tolist(), rate, prompt, ArSampling(top_k=1, max_length_ratio=2.0))
        yield f"{name}tokens", torch.tensor([spoken.codes])
        # The original ends before it has told the last token's duration.
        yield f"{name}durations", torch.tensor([spoken.durations[:-1]])
        before = torch.tensor([[prompt.durations[-1], *spoken.durations[:-2]]])
        inputs = module.speech_input(torch.tensor([spoken.codes[:-1]]), before)
        yield f"{name}step_inputs", inputs
        hidden, state = module.llm.step(prefix, module.llm.initial_state(1, prefix.shape[1] + inputs.shape[1]))
        steps = [hidden[:, -1]]
        for x in inputs.split(1, dim=1):
            hidden, state = module.llm.step(x, state)
            steps.append(hidden[:, -1])
        last = torch.cat(steps)
        yield f"{name}hidden_last", last
        yield f"{name}logits", module.llm_decoder(last)
        yield f"{name}duration_logits", module.duration_decoder(last[1:])


CHECKS: dict[str, Check] = {
    "audio": check_audio,
    "mel24k": check_mel24k,
    "voicebox_tiny": check_voicebox,
    "vocos_tiny": check_vocos,
    "artts_tiny": check_artts,
}
