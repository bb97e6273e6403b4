"""`agogic bench engine`: what a joint step and a chunk of sound ask of a GPU, counted without one.

The networks of the released sizes are made without weights, on torch's meta device, and their steps are watched
operation by operation (`kernels.step_trace`). Then the same steps of networks with few, random weights run for callers
that come and go, under the strict runner: it fails where something is read back, made of the host's data, or hangs on
the contents.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial

import torch

from benchmarks.official import flow_dials
from benchmarks.official.released_sizes import ENCODER_DIM, Size, released_config
from kernels.paged_attention import GatheredPages, PagedAttention, TorchVarlen
from kernels.recorder import Strict
from kernels.sampling import counted_uniforms
from kernels.step_runner import RecordedSteps
from kernels.step_trace import StepTrace, traced
from models.networks.flexislm import FlexiSLM
from models.networks.generation import GenerationOptions, Runner
from models.networks.joint_step import JointStep
from models.networks.tokenizer import SpecialIds
from streaming.speaking.flow import FlowConfig, Voicebox
from streaming.speaking.infill import InfillDecoder, InfillDials, PromptVoice
from streaming.speaking.infill_window import Guidance, WindowBatch, WindowShape
from streaming.speaking.mel24k import MEL_BINS
from streaming.speaking.unmerge import UPSAMPLING

IDS = SpecialIds(151_643, 151_644, 151_645, 198, 151_937, 151_938)
TOY_IDS = SpecialIds(1, 2, 3, 4, 5, 6)
POSITIONS = 2048
BUCKET = 8
PROMPT_FRAMES = 300
"""50 Hz: a recording of 6 s to sound like."""


def run(size: Size) -> dict[str, object]:
    """Operations are kernels that a GPU would launch: views are none, a linear layer, a norm or attention is one."""
    counted = {attention.name: _joint_step(size, attention) for attention in _attentions()}
    taken = next(iter(counted))  # the one that a GPU takes
    think, talk = counted[taken]
    prepare, periods = _flow()
    strict = _callers()
    flow = _windows()
    reads = [*think.host_reads, *talk.host_reads, *prepare.host_reads]
    made = [*think.host_made, *talk.host_made, *prepare.host_made]
    for trace in (*periods, *strict.traces.values(), *flow.traces.values()):
        reads += trace.host_reads
        made += trace.host_made
    together = Counter(name.split(".")[1] for name in think.operations + talk.operations)
    return {
        "measured": False,
        "size": size,
        "attention": taken,
        "host_reads": len(reads),
        "host_made_tensors": len(made),
        "operations_per_step": len(think.operations) + len(talk.operations),
        "think_operations": len(think.operations),
        "talk_operations": len(talk.operations),
        "operations_per_step_by_attention": {
            name: len(first.operations) + len(second.operations) for name, (first, second) in counted.items()
        },
        "most_frequent_operations": dict(together.most_common(8)),
        "flow_operations_per_chunk": len(prepare.operations) + sum(len(period.operations) for period in periods),
        "flow_units_per_chunk": len(periods),
        "flow_operations_per_unit": max(len(period.operations) for period in periods),
        "strict_steps": [f"{key[0]} {key[1]}" for key in strict.traces if isinstance(key, tuple)],
        "strict_rows": list(range(1, BUCKET + 1)),
        "strict_windows": len({key[0] for key in flow.traces if isinstance(key, tuple)}),
        "flow_dials": flow_dials.run(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _attentions() -> list[PagedAttention]:
    """The back ends that can be counted here, the one first that a GPU without flash-attn takes."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return [GatheredPages()]
    return [TorchVarlen(varlen_attn), GatheredPages()]


def _joint_step(size: Size, attention: PagedAttention) -> tuple[StepTrace, StepTrace]:
    """think and talk by lot, eight rows, of the released size."""
    with torch.device("meta"), torch.inference_mode():
        model = FlexiSLM(released_config(size), ENCODER_DIM).bfloat16()
        model.fuse()
        decoders = (model.thinker.model, model.talker_model.model.model)
        caches = [decoder.new_cache(BUCKET, POSITIONS, attention.page) for decoder in decoders]
        joint = JointStep(model, IDS, attention, *caches)
        rows, width = torch.zeros(BUCKET, dtype=torch.int64), caches[0].pages_each
        think = traced(lambda: joint.think(rows, width, None))
        return think, traced(lambda: joint.talk_by_lot(rows, width, None))


def _flow() -> tuple[StepTrace, list[StepTrace]]:
    """One chunk of the official flow decoder: what prepares it, and its periods."""
    dials = InfillDials()
    target = UPSAMPLING * (dials.chunk_frames[-1] + dials.look_ahead_frames)
    shape = WindowShape(1, PROMPT_FRAMES, UPSAMPLING * dials.context_frames, target)
    periods = -(-dials.steps // dials.prefix_every)
    guided = tuple(step < dials.guided_steps for step in range(dials.prefix_every))
    with torch.device("meta"), torch.inference_mode():
        voicebox = Voicebox(FlowConfig()).bfloat16()
        voicebox.fuse()
        batch = WindowBatch(voicebox, shape)
        gains = voicebox.diff_estimator.step_gains(dials.steps).unflatten(0, (periods, dials.prefix_every))
        guidance = Guidance(dials.guidance, dials.rescale)
        work = partial(batch.period, gains, guided, guidance, dials.steps)
        return traced(batch.prepare), [traced(work) for _ in range(periods)]


def _callers() -> Strict:
    """One to eight callers, of different prompts and kinds, that begin one after the other, in one bucket."""
    torch.manual_seed(0)
    strict = Strict()
    runner = Runner(_toy(), TOY_IDS, BUCKET, 512)
    runner.steps = RecordedSteps(strict, (BUCKET,), BUCKET, torch.device("cpu"))
    answers = []
    for slot in range(BUCKET):
        runner.extend(slot, torch.randn(5 + 9 * slot, 64), 12.5)
        drawn = counted_uniforms(slot, 0, 24) if slot % 2 else None
        answers.append(runner.start(slot, GenerationOptions(12.5, max_steps=24, uniforms=drawn)))
        for _ in range(2):
            runner.step([answer for answer in answers if not answer.ended])
    return strict


def _toy() -> FlexiSLM:
    tiny: dict[str, object] = {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "audio_vocab_size": 60,
        "talker_num_layers": 2,
        "talker_num_attention_heads": 2,
        "talker_intermediate_size": 64,
        "talker_hidden_size": 32,
        "input_merging_transformer_d_model": 32,
    }
    model = FlexiSLM(released_config("0.5B", tiny), 32).requires_grad_(False).eval()
    model.fuse()
    return model


def _windows() -> Strict:
    """Chunks of one to three utterances with prompts of different lengths."""
    strict, codes = Strict(), 32
    voicebox = Voicebox(FlowConfig(64, 2, 2, 64, 64, codes)).requires_grad_(False)
    voicebox.fuse()
    decoder = InfillDecoder(voicebox, InfillDials(steps=4, prefix_every=2), recorder=strict)
    prompts = [PromptVoice(torch.randint(codes, (n,)), torch.randn(UPSAMPLING * n, MEL_BINS)) for n in (12, 7)]
    streams = [decoder.begin(prompt) for prompt in (*prompts, None)]
    for number, stream in enumerate(streams):
        for code in range(12 + 7 * number):
            stream.push(code % codes, 1)
        stream.end()
    while ready := [stream for stream in streams if stream.ready]:
        decoder.render(ready)
    return strict
