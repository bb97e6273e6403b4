"""Golden parity of FlexiSLM: log-mel to (code, duration) pairs against recorded runs of the original networks.

A folder holds shared fixtures (front-end, encoders, grouping, prompts) and one folder per variant with a checkpoint
in the official layout and recorded runs. Every run is repeated from the encoder's frames on and compared step by
step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from benchmarks.golden.files import Check, Computed, Golden, TensorResult, run_fixture
from kernels.sampling import filtered_probabilities
from models.checkpoints.flexislm_checkpoint import load_flexislm
from models.checkpoints.omni_checkpoint import load_omni_encoder
from models.networks.flexislm import AudioMlp, FlexiSLM
from models.networks.frame_rate import frame_rate_embedding
from models.networks.generation import Generation, GenerationOptions, Runner, Step
from models.networks.prompts import chat_prompt
from models.networks.qwen2 import Qwen2Model
from models.networks.tokenizer import TextTokenizer
from streaming.hearing.log_mel import whisper_log_mel
from streaming.hearing.mel_filters import mel_filters
from streaming.merging.grouping import Groups, group_frames, neighbour_similarity
from streaming.merging.merger import group_means, interleave

VARIANTS = ("stage2", "stage2-lora", "stage3", "stage2-mlp")
ENCODERS = ("64", "80")
SPEECH_STEPS = 60
TEXT_STEPS = 40


def check_log_mel(golden: Golden) -> Computed:
    tensors = golden["log_mel"]
    yield "mel_filters", mel_filters(400, 128, 16_000)
    for key in [key for key in tensors if key.endswith(".waveform")]:
        yield key.replace("waveform", "log_mel"), whisper_log_mel(tensors[key])
    yield "clip_a_first_2s.log_mel", whisper_log_mel(tensors["clip_a.waveform"][:32_000])


def check_encoders(golden: Golden) -> Computed:
    mels = golden["log_mel"]
    for width in ENCODERS:
        encoder = load_omni_encoder(golden.folder / f"audio_encoder_{width}", dtype=torch.float32)
        for key in [key for key in golden["audio_encoder_outputs"] if key.startswith(f"enc{width}.")]:
            _, clip, kind = key.split(".")
            frames = encoder(_mel(mels, clip)[None])[0]
            if kind == "adjacent_cosine_bf16":
                yield key, neighbour_similarity(frames.bfloat16())
            else:
                yield key, frames if kind == "frames" else neighbour_similarity(frames)


def _mel(mels: dict[str, Tensor], clip: str) -> Tensor:
    """The recorded features that a recorded encoding was made of."""
    if clip == "clip_a_first_2s":
        return mels["clip_a.log_mel"][:200]
    if clip.endswith("_mel_frames"):
        return mels["clip_a.log_mel"][: int(clip.split("_")[1])]
    return mels[f"{clip}.log_mel"]


def check_frame_rate(golden: Golden) -> Computed:
    tensors = golden["frame_rate_embedding"]
    for key in [key for key in tensors if key.startswith("H")]:
        width, dtype = key.removeprefix("H").split(".")
        yield key, frame_rate_embedding(tensors["hz"], int(width), getattr(torch, dtype))


def check_grouping(golden: Golden) -> Computed:
    tensors = golden["grouping_cases"]
    for case in json.loads((golden.folder / "grouping_cases.json").read_text()):
        name, uniform = case["name"], case["mode"] == "uniform"
        target = case["target_hz"] if case["threshold"] is None else case["threshold"]
        mode: Literal["uniform", "dynamic"] = "uniform" if uniform else "dynamic"
        groups = group_frames(
            tensors[f"{name}.frames"], target, case["base_rate_hz"], max_group=case["max_group"], mode=mode
        )
        yield from _groups(name, groups, similarity=bool(groups.similarity.any()))


def _groups(name: str, groups: Groups, *, similarity: bool) -> Computed:
    yield f"{name}.group_start", groups.starts
    yield f"{name}.group_length", groups.lengths
    yield f"{name}.frame_to_group", groups.frame_to_group
    if similarity:
        yield f"{name}.adjacent_cosine", groups.similarity


def prompt_results(folder: Path) -> list[TensorResult]:
    """Strings and ids of the nine prompt cases, each as one entry."""
    tokenizer = TextTokenizer.load(folder / "tokenizer")
    results = []
    for case in json.loads((folder / "prompts.json").read_text()):
        prompt = chat_prompt(case["user_text"], audio=case["user_audio"], speech=case["speech_output"])
        for part, text in (("part_a", prompt.before), ("part_b", prompt.after)):
            same = text == case[part] and tokenizer.encode(text) == case[f"{part}_ids"]
            results.append(TensorResult("prompts", f"{case['task']}.{part}", 0.0, int(not same)))
    return results


def check_audio_mlp(golden: Golden) -> Computed:
    """What brings encoder frames to the width of the 0.5B's Thinker; in the full set a part of stage2-mlp."""
    state, frames = golden.weights("audio_mlp"), golden["audio_encoder_outputs"]["enc80.clip_a.frames"]
    between, before = state["fc1.weight"].shape
    module = AudioMlp(before, between, state["fc2.weight"].shape[0])
    module.load_state_dict(state)
    yield "transformed_frames", module(frames)


def check_input(variant: str) -> Check:
    def check(golden: Golden) -> Computed:
        folder = golden.folder / variant
        model = load_flexislm(folder, dtype=torch.float32)
        tensors = golden[f"{variant}/input"]
        yield "adjacent_cosine", neighbour_similarity(tensors["encoder_frames"])
        yield "transformed_frames", model.transform(tensors["encoder_frames"])
        cases = {case: tensors["encoder_frames"] for case in json.loads((folder / "groups.json").read_text())}
        other = golden["audio_encoder_outputs"].get(f"enc{model.encoder_dim}.clip_b.frames")
        if other is not None:
            cases["clip_b.top_k_6.25hz"] = other
        for case, frames in cases.items():
            kind, _, target = case.removeprefix("clip_b.").rpartition("_")
            mode: Literal["uniform", "dynamic"] = "uniform" if kind == "uniform" else "dynamic"
            merged = model.merge(frames, float(target.removesuffix("hz")), mode=mode)
            yield from _groups(case, merged.groups, similarity=False)
            transformed = model.transform(frames)
            yield f"{case}.group_mean", group_means(transformed, merged.groups.lengths)
            yield f"{case}.interleaved", interleave(transformed, merged.groups.lengths)[0]
            yield f"{case}.merged", merged.embeddings

    return check


@dataclass
class _Tape:
    """What goes into a decoder and comes out of it, position by position."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def listen(self, decoder: Qwen2Model) -> None:
        """Prefill of a prompt, packed, and steps of one row."""
        decoder.prefill = self._wrap(decoder.prefill)  # type: ignore[method-assign]
        decoder.decode = self._wrap(decoder.decode)  # type: ignore[method-assign]

    def _wrap(self, work: Callable[..., tuple[Tensor, Tensor | None]]) -> Callable[..., tuple[Tensor, Tensor | None]]:
        def taped(x: Tensor, *rest: object) -> tuple[Tensor, Tensor | None]:
            self.inputs.append(x.clone())  # steps change it in place
            result = work(x, *rest)
            self.outputs.append(result[0])
            return result

        return taped


def check_run(variant: str, name: str) -> Check:
    def check(golden: Golden) -> Computed:
        folder = golden.folder / variant
        run = json.loads((folder / "traces.json").read_text())[name]
        recorded = golden[f"{variant}/traces/{name}"]
        model = load_flexislm(folder, dtype=torch.float32)
        tokenizer = TextTokenizer.load(golden.folder / "tokenizer")
        thinker, talker = _Tape(), _Tape()
        thinker.listen(model.thinker.model)
        talker.listen(model.talker_model.model.model)
        runner = Runner(model, tokenizer.special, slots=1, max_positions=512)
        speech = not name.startswith("text_only")
        runner.extend(0, _prompt(model, golden[f"{variant}/input"] if run["input"] != "no audio" else {}, run))
        options = GenerationOptions(
            run["output_hz"],
            speech=speech,
            max_steps=SPEECH_STEPS if speech else TEXT_STEPS,
            uniforms=recorded["uniforms"].double().numpy() if "uniforms" in recorded else None,
            forced_text=tuple(run.get("force_text", ())),
            forced_speech=tuple(run.get("force_audio", ())),
        )
        answer = runner.start(0, options)
        yield "prefill.prompt_embeddings", thinker.inputs[0]
        yield "prefill.thinker_hidden", thinker.outputs[0]
        if speech:
            yield "prefill.talker_input", talker.inputs[0]
            yield "prefill.talker_hidden", talker.outputs[0]
            yield "frame_rate_embedding", answer.frame_rate
        yield from _steps(model, runner, answer)
        yield "thinker_input", torch.cat(thinker.inputs[1:])
        if speech:
            yield "talker_input", torch.cat(talker.inputs[1:])
        caches = [runner.thinker_cache.held[0]] + ([runner.talker_cache.held[0]] if speech else [])
        expected = [run["thinker_cache_length"]] + ([run["talker_cache_length"]] if speech else [])
        if caches != expected:
            raise ValueError(f"{variant} {name}: caches hold {caches} positions instead of {expected}")

    return check


def _prompt(model: FlexiSLM, audio: dict[str, Tensor], run: dict[str, object]) -> Tensor:
    """[P, H]: recorded ids around the merged clip, where there is one."""
    before, after = (model.embed_ids(cast(list[int], run[key])) for key in ("part_a_ids", "part_b_ids"))
    if not audio:
        return torch.cat((before, after))
    merged = model.merge(audio["encoder_frames"], cast(float, run["output_hz"])).embeddings
    marks = model.thinker.audio_start_embedding[None], model.thinker.audio_end_embedding[None]
    return torch.cat((before[:-1], marks[0], merged, marks[1], after[1:]))


def _steps(model: FlexiSLM, runner: Runner, answer: Generation) -> Computed:
    """Runs the answer to its end; everything that was recorded row by row."""
    speech = answer.options.speech
    rows: dict[str, list[Tensor]] = {}
    steps: list[Step] = []
    frozen_before = False
    while not answer.ended:
        frozen, hidden = answer.text_frozen, answer.thinker_hidden
        _add(rows, "thinker_hidden", torch.zeros_like(hidden) if frozen_before else hidden)
        frozen_before = frozen
        if not frozen:
            _add(rows, "text_logits", model.thinker.text_logits(hidden))
        if answer.talker_hidden is not None:
            logits = model.talker_model.speech_logits(answer.talker_hidden)
            _add(rows, "talker_hidden", answer.talker_hidden)
            _add(rows, "speech_logits", logits)
            _add(rows, "speech_token_sampled", logits.argmax())
            _add(rows, "length_logits", model.talker_model.length_logits(answer.talker_hidden))
            _add(rows, "speech_probabilities", filtered_probabilities(logits, top_k=20, top_p=0.9))
        _add(rows, "frozen", torch.tensor(int(frozen)))
        steps += runner.step([answer])
    yield from ((key, torch.stack(values)) for key, values in rows.items())
    yield "text_token", torch.tensor([step.text_token or 0 for step in steps])
    if speech:
        yield "speech_token", torch.tensor([step.speech_token for step in steps])
        yield "length", torch.tensor([step.length for step in steps])
        spoken = [step.spoken for step in steps if step.spoken is not None]
        codes = torch.tensor([token.code for token in spoken])
        durations = torch.tensor([token.duration_frames for token in spoken])
        yield "codes", codes
        yield "durations", durations
        yield "expanded_codes_12.5hz", torch.repeat_interleave(codes, durations)


def _add(rows: dict[str, list[Tensor]], key: str, value: Tensor) -> None:
    rows.setdefault(key, []).append(value)


def checks(folder: Path) -> dict[str, Check]:
    """The fixtures that the folder holds."""
    shared = {
        "log_mel": check_log_mel,
        "audio_encoder_outputs": check_encoders,
        "frame_rate_embedding": check_frame_rate,
        "grouping_cases": check_grouping,
        "audio_mlp": check_audio_mlp,
    }
    found: dict[str, Check] = {name: check for name, check in shared.items() if Golden(folder).has(name)}
    for variant in VARIANTS:
        if Golden(folder).has(f"{variant}/input"):
            found[f"{variant}/input"] = check_input(variant)
        for path in _runs(folder / variant):
            found[f"{variant}/traces/{path.stem}"] = check_run(variant, path.stem)
    return found


def _runs(variant: Path) -> Iterator[Path]:
    yield from sorted((variant / "traces").glob("*.safetensors"))


def run(folder: Path) -> list[TensorResult]:
    """Every fixture of the family that the folder holds, tensor by tensor."""
    golden, found = Golden(folder), checks(folder)
    results = [result for fixture in found for result in run_fixture(golden, fixture, found)]
    return results + (prompt_results(folder) if (folder / "prompts.json").exists() else [])
