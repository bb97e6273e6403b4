"""Stage 2: merging transformer, Thinker and Talker, jointly, on answers, transcripts and repeated sentences.

Each example is a prompt (earlier reply, spoken or written user turn) and the answer's text; where the answer was recorded
in the speaking voice, also its speech codes at one of the trained rates. Text is learnt from all, speech from the latter.
Spoken turns pass through the encoder, are grouped by the causal rate controller at a random rate, and merged.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from models.frame_rate import frame_rate_embedding
from models.prompts import PastTurn, chat_prompt, repeat_request
from models.prompts import Prompts as PromptTexts
from models.qwen2 import DecoderConfig, HeadOfLayer
from models.talker import AUDIO_END, AUDIO_START, CODE_OFFSET, Talker
from models.thinker import Thinker
from streaming.encoder import BlockCausalEncoder, Encoded, EncoderConfig
from streaming.merger import InterleavedMergingTransformer, merger_mode
from streaming.rate_control import group_causal
from streaming.transformer import LayerScale, TransformerConfig
from training.features import Augmenter, Clip, held_out, load_recordings, load_store, noise_bank, scale, without_silence
from training.recogniser import Example as CtcExample
from training.recogniser import character_ids, loss_of
from training.speech_codes import SpokenText, load_codes
from training.world import DECLINE, confirm, parse_order, pool_turn, sample_turn

ENCODER_HZ = 25.0
MAX_GROUP = 16
RATES_HZ = (12.5, 8.0, 6.25, 5.0, 4.0)
ALIGNMENT_HEAD = HeadOfLayer(1, 0)
IGNORE = -100
PROMPTS = PromptTexts(
    perceives="", text="", transcribe="", asks_transcript="Transcribe:", asks_repetition="Repeat:", history="last_answer", instructable=False
)


class SlmConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`text_minutes` of training precede the spoken prompts; weights of losses as in FlexiSLM but for the alignment."""

    speech: str
    clips: str
    labels: str
    tokenizer: str
    encoder: str
    codes: str
    output: str
    text_minutes: float = 0.0
    minutes: float = 45.0
    finetune_encoder_from: float = 1.0
    batch: int = 20
    learning_rate: float = 1.2e-3
    warmup_steps: int = 200
    delay_tokens: int = 5
    codes_count: int = 1600
    threads: int = 1
    seed: int = 11


def thinker_config(vocabulary: int) -> DecoderConfig:
    return DecoderConfig(vocab_size=vocabulary, hidden_size=256, intermediate_size=768, num_layers=4, num_heads=4, num_kv_heads=2)


def talker_config(codes: int) -> DecoderConfig:
    return DecoderConfig(vocab_size=CODE_OFFSET + codes, hidden_size=256, intermediate_size=768, num_layers=4, num_heads=4, num_kv_heads=4)


def merger_config() -> TransformerConfig:
    return TransformerConfig(input_dim=256, output_dim=256, d_model=256, num_heads=4, num_layers=2, ffn_dim=768,
                             mode=merger_mode(True), context=32)


@dataclass(frozen=True)
class Item:
    """One example. `before` and `after` surround the audio (if any) in the prompt, as text ids."""

    before: list[int]
    after: list[int]
    answer: list[int]
    clip: Clip | None
    input_hz: float
    speech: SpokenText | None
    output_hz: float


@dataclass(frozen=True)
class Losses:
    text: Tensor
    speech: Tensor
    length: Tensor
    alignment: Tensor
    recognition: Tensor

    def total(self) -> Tensor:
        return 2.0 * self.text + self.speech + 0.5 * self.length + 0.3 * self.alignment + 0.5 * self.recognition


class SpeechLanguageModel(nn.Module):
    """What is trained together."""

    def __init__(self, vocabulary: int, codes: int) -> None:
        super().__init__()
        self.merger = InterleavedMergingTransformer(merger_config())
        self.thinker = Thinker(thinker_config(vocabulary), tied=True)
        self.talker = Talker(talker_config(codes), 256, 32)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02 if isinstance(module, nn.Embedding) else 0.04)
            if isinstance(module, LayerScale):
                nn.init.constant_(module.scale, 0.4)  # the official start, 0.01, is for long runs


class Prompts:
    """Text ids around the user's turn, as `models.prompts` lays them out."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end = [tokenizer.token_to_id("<|im_end|>"), *tokenizer.encode("\n").ids]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def around(self, history: str, user_text: str, *, audio: bool) -> tuple[list[int], list[int]]:
        """Text ids before and after the audio; `history` is the last answer, "" where there is none."""
        past = [PastTurn("assistant", history)] if history else []
        prompt = chat_prompt(user_text, audio=audio, speech=True, history=past, prompts=PROMPTS)
        return self.ids(prompt.before), self.ids(prompt.after)

    def answer(self, text: str) -> list[int]:
        return self.ids(text) + self.end


class Examples:
    """Draws items: spoken orders and other turns, transcription, written turns, sentences to repeat."""

    def __init__(self, config: SlmConfig, rng: random.Random) -> None:
        self.rng = rng
        self.tokenizer = Tokenizer.from_file(config.tokenizer)
        self.prompts = Prompts(self.tokenizer)
        self.synthetic = load_store(Path(config.speech))
        self.pool = [clip for clip in self.synthetic if clip.seed is not None]
        self.general = [clip for clip in self.synthetic if clip.seed is None]
        recordings = load_recordings(Path(config.clips), Path(config.labels))
        self.recordings = [pair for pair in recordings if not held_out(pair[0].name)]
        self.trimmed = [(replace(clip, mel=without_silence(clip.mel)), slots) for clip, slots in self.recordings]
        self.tests = [pair for pair in recordings if held_out(pair[0].name)]
        self.spoken: dict[str, list[SpokenText]] = defaultdict(list)
        for spoken in load_codes(Path(config.codes)) if config.codes else []:
            self.spoken[spoken.text].append(spoken)
        self.replies = [text for text in self.spoken if parse_order(text) is not None]
        self.other_speech = [text for text in self.spoken if parse_order(text) is None]

    def draw(self, with_audio: bool) -> Item:
        draw = self.rng.random()
        if with_audio and draw < 0.62:
            return self._spoken_turn()
        if draw < 0.80 and self.spoken:
            return self._repeat()
        return self._written_turn()

    def _item(self, before: list[int], after: list[int], text: str, clip: Clip | None) -> Item:
        speech, output_hz = None, self.rng.choice(RATES_HZ)
        if text in self.spoken:
            speech = self.rng.choice(self.spoken[text])
            output_hz = self.rng.choice(list(speech.codes))
        return Item(before, after, self.prompts.answer(text), clip, self._input_hz(), speech, output_hz)

    def _input_hz(self) -> float:
        return self.rng.choice((12.5, 12.5, 8.0, 6.25, 6.25, 5.0, 4.0))

    def _spoken_turn(self) -> Item:
        draw = self.rng.random()
        if draw < 0.5:
            clip, slots = self.rng.choice(self.trimmed if self.rng.random() < 0.75 else self.recordings)
            before, after = self.prompts.around(self._history_before_order(), "", audio=True)
            return self._item(before, after, confirm(slots), clip)
        if draw < 0.80:
            clip = self.rng.choice(self.pool)
            assert clip.seed is not None
            turn = pool_turn(clip.seed)
            before, after = self.prompts.around(turn.history, "", audio=True)
            return self._item(before, after, turn.reply, clip)
        if draw < 0.85:
            clip = self.rng.choice(self.general)
            before, after = self.prompts.around("" if self.rng.random() < 0.5 else self._history_before_order(), "", audio=True)
            return self._item(before, after, DECLINE, clip)
        clip = self.rng.choice(self.synthetic)
        before, after = self.prompts.around("", PROMPTS.asks_transcript, audio=True)
        return self._item(before, after, clip.text, clip)

    def _history_before_order(self) -> str:
        if self.rng.random() < 0.7:
            return ""
        return pool_turn(self.rng.randrange(6000)).reply if self.rng.random() < 0.5 else "Hello, what can I get you?"

    def _repeat(self) -> Item:
        text = self.rng.choice(self.replies if self.rng.random() < 0.65 else self.other_speech)
        before, after = self.prompts.around("", repeat_request(text, PROMPTS), audio=False)
        return self._item(before, after, text, None)

    def _written_turn(self) -> Item:
        turn = pool_turn(self.rng.randrange(6000)) if self.spoken and self.rng.random() < 0.6 else sample_turn(self.rng)
        before, after = self.prompts.around(turn.history, self._typed(turn.user), audio=False)
        return self._item(before, after, turn.reply, None)

    def _typed(self, text: str) -> str:
        draw = self.rng.random()
        if draw < 0.3:
            return text
        typed = text[0].upper() + text[1:].replace(" i ", " I ").replace(" i'", " I'")
        return typed if draw < 0.5 else typed + self.rng.choice(".?.!")


class SlmTraining:
    """The run: model, data, optimiser, checkpoint."""

    def __init__(self, config: SlmConfig) -> None:
        self.config = config
        self.rng = random.Random(config.seed)
        torch.manual_seed(config.seed)
        self.data = Examples(config, self.rng)
        self.model = SpeechLanguageModel(self.data.tokenizer.get_vocab_size(), config.codes_count)
        self.encoder = BlockCausalEncoder(EncoderConfig())
        self.augment = Augmenter(noise_bank(self.data.synthetic[:2000], self.rng), self.rng)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
        self.encoder_optimizer = torch.optim.AdamW(self.encoder.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.01)
        self.average = {name: p.detach().clone() for name, p in self._named()}
        self.step, self.minutes = 0, 0.0
        self.checkpoint = Path(config.output)
        if self.checkpoint.exists():
            self._resume()
        if self.minutes <= config.text_minutes:
            # The recogniser may train on while Thinker and Talker learn from text; its latest weights count.
            self.encoder.load_state_dict(torch.load(config.encoder, weights_only=False)["average"])
            self.average |= {f"encoder.{n}": p.detach().clone() for n, p in self.encoder.named_parameters()}

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [*self.model.named_parameters(), *((f"encoder.{n}", p) for n, p in self.encoder.named_parameters())]

    def _resume(self) -> None:
        saved = torch.load(self.checkpoint, weights_only=False)
        self.model.load_state_dict(saved["model"])
        self.encoder.load_state_dict(saved["encoder"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.encoder_optimizer.load_state_dict(saved["encoder_optimizer"])
        self.average = saved["average"]
        self.step, self.minutes = saved["step"], saved["minutes"]

    def save(self) -> None:
        partial = self.checkpoint.with_suffix(".partial")
        torch.save({"model": self.model.state_dict(), "encoder": self.encoder.state_dict(), "optimizer": self.optimizer.state_dict(),
                    "encoder_optimizer": self.encoder_optimizer.state_dict(), "average": self.average,
                    "step": self.step, "minutes": self.minutes}, partial)
        partial.rename(self.checkpoint)

    def merged_audio(self, items: list[Item], train_encoder: bool) -> tuple[list[Tensor | None], Encoded | None, Tensor]:
        """Merged embeddings [G, 256] of the items that are spoken, and the encoder's output for its own loss."""
        clips = [item.clip for item in items if item.clip is not None]
        if not clips:
            return [None] * len(items), None, torch.zeros(0)
        mel, lengths = self.augment.batch([clip.mel for clip in clips], 0.45)
        with torch.set_grad_enabled(train_encoder):
            encoded = self.encoder.encode(mel, lengths)
        frames = [encoded.frames[row, : -(-int(length) // 4)] for row, length in enumerate(lengths)]
        rates = [item.input_hz for item in items if item.clip is not None]
        parts = [(x, group_lengths(x, hz)) for x, hz in zip(frames, rates, strict=True)]
        merged = iter(self.model.merger.forward_batch(parts))
        return [next(merged) if item.clip is not None else None for item in items], encoded, lengths

    def losses(self, items: list[Item], train_encoder: bool) -> Losses:
        """Losses of one batch, see `Losses.total`."""
        thinker, talker = self.model.thinker, self.model.talker
        audio, encoded, mel_lengths = self.merged_audio(items, train_encoder)
        rows, starts = [], []
        for item, merged in zip(items, audio, strict=True):
            before, after = (thinker.embed(torch.tensor(ids)) for ids in (item.before, item.after))
            if merged is None:
                parts = [before, after]
            else:
                parts = [before[:-1], thinker.audio_start_embedding[None], merged.to(before.dtype),
                         thinker.audio_end_embedding[None], after[1:]]
            parts.append(thinker.embed(torch.tensor(item.answer)))
            rows.append(torch.cat(parts))
            starts.append(rows[-1].shape[0] - len(item.answer))
        inputs = pad_sequence(rows, batch_first=True)
        hidden = thinker.forward(inputs)
        predicting = torch.cat([hidden[i, s - 1 : s - 1 + len(item.answer)] for i, (s, item) in enumerate(zip(starts, items, strict=True))])
        answers = torch.tensor([t for item in items for t in item.answer])
        text = F.cross_entropy(thinker.text_logits(predicting).float(), answers)
        zero = text.new_zeros(())
        recognition = zero
        if train_encoder and encoded is not None:
            recognition = self._recognition(items, encoded, mel_lengths)
        speaking = [i for i, item in enumerate(items) if item.speech is not None]
        if not speaking:
            return Losses(text, zero, zero, zero, recognition)
        return Losses(text, *self._speech_losses(items, speaking, starts, inputs, hidden, talker), recognition)

    def _recognition(self, items: list[Item], encoded: Encoded, mel_lengths: Tensor) -> Tensor:
        """CTC loss on the clips whose words are known."""
        clips = [item.clip for item in items if item.clip is not None]
        known = [row for row, clip in enumerate(clips) if clip.text]
        if not known:
            return encoded.frames.new_zeros(())
        examples = [CtcExample(clips[row], character_ids(" " + clips[row].text), self.data.prompts.ids(" " + clips[row].text)) for row in known]
        rows = torch.tensor(known)
        part = Encoded(encoded.frames[rows], encoded.characters[rows], encoded.middle_characters[rows], encoded.pieces[rows])
        return loss_of(part, mel_lengths[rows], examples)

    def _speech_losses(
        self, items: list[Item], speaking: list[int], starts: list[int], inputs: Tensor, hidden: Tensor, talker: Talker
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Code, duration and alignment losses over the rows that have speech."""
        delay = self.config.delay_tokens
        tokens, lengths, sizes, rates = [], [], [], []
        for i in speaking:
            spoken = items[i].speech
            assert spoken is not None
            codes, durations = spoken.codes[items[i].output_hz]
            s = [AUDIO_START] * delay + [int(c) + CODE_OFFSET for c in codes] + [AUDIO_END]
            n = [0] * (delay + 1) + [int(d) for d in durations]
            tokens.append(torch.tensor(s))
            lengths.append(torch.tensor(n))
            sizes.append(starts[i] + len(s) - 1)
            rates.append(12.5 * len(codes) / int(durations.sum()))
        positions = max(sizes)
        count = len(speaking)
        base, context = (
            F.pad(x[speaking], (0, 0, 0, max(0, positions - x.shape[1])))[:, :positions] for x in (hidden, inputs)
        )
        place = torch.arange(positions)
        start = torch.tensor([starts[i] for i in speaking])[:, None]
        answer = torch.tensor([len(items[i].answer) for i in speaking])[:, None]
        in_prompt = place < start
        text_ended = place >= start + answer
        fed_tokens = torch.full((count, positions), AUDIO_START)
        fed_lengths = torch.zeros(count, positions, dtype=torch.int64)
        next_tokens = torch.full((count, positions), IGNORE)
        next_lengths = torch.full((count, positions), IGNORE)
        for row, (s, n) in enumerate(zip(tokens, lengths, strict=True)):
            begin, steps = int(start[row]), len(s) - 1
            noisy = s.clone()
            corrupt = (torch.rand(len(s)) < 0.06) & (s >= CODE_OFFSET)
            noisy[corrupt] = torch.randint(CODE_OFFSET, CODE_OFFSET + self.config.codes_count, (int(corrupt.sum()),))
            fed_tokens[row, begin : begin + steps] = noisy[:-1]
            fed_lengths[row, begin : begin + steps] = n[:-1]
            next_tokens[row, begin - 1 : begin + steps] = s
            next_lengths[row, begin - 1 : begin + steps] = n
        rate = torch.stack([frame_rate_embedding(hz, 256, torch.float32) for hz in rates])
        z = talker.condition(base, rate, talker.audio_emb(fed_tokens), talker.length_emb(fed_lengths), context,
                             in_prompt=in_prompt, text_ended=text_ended)
        out, attention = talker.forward_with_attention(z, ALIGNMENT_HEAD)
        flat = out[next_tokens != IGNORE]
        speech = F.cross_entropy(talker.speech_logits(flat).float(), next_tokens[next_tokens != IGNORE], label_smoothing=0.02)
        length = F.cross_entropy(talker.length_logits(flat).float(), next_lengths[next_lengths != IGNORE])
        return speech, length, self._alignment(items, speaking, starts, attention)

    def _alignment(self, items: list[Item], speaking: list[int], starts: list[int], attention: Tensor) -> Tensor:
        """-log of the watched head's weight on the words spoken in each code, read where the code is predicted."""
        query_rows, query_places, masks = [], [], []
        for row, i in enumerate(speaking):
            spoken = items[i].speech
            assert spoken is not None
            owner = word_of_tokens(self.data.tokenizer, items[i].answer)
            for j, words in enumerate(spoken.words_of_codes(items[i].output_hz)):
                k = self.config.delay_tokens - 1 + j
                keys = [starts[i] + t for t, word in enumerate(owner) if word in words and t <= k]
                if keys:
                    query_rows.append(row)
                    query_places.append(starts[i] + k)
                    mask = torch.zeros(attention.shape[2])
                    mask[keys] = 1.0
                    masks.append(mask)
        if not masks:
            return attention.new_zeros(())
        weights = attention[torch.tensor(query_rows), torch.tensor(query_places)]
        return -((weights * torch.stack(masks)).sum(-1) + 1e-4).log().mean()

    def train_step(self) -> Losses:
        c = self.config
        with_audio = self.minutes >= c.text_minutes
        train_encoder = self.minutes >= c.finetune_encoder_from * c.minutes
        items = [self.data.draw(with_audio) for _ in range(c.batch)]
        done = self.minutes / c.minutes
        factor = min(1.0, (self.step + 1) / c.warmup_steps) * (1.0 if done < 0.4 else max(0.02, (1 - done) / 0.6))
        for group in self.optimizer.param_groups:
            group["lr"] = c.learning_rate * factor
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = self.losses(items, train_encoder)
        self.optimizer.zero_grad(set_to_none=True)
        self.encoder_optimizer.zero_grad(set_to_none=True)
        losses.total().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        if train_encoder:
            nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
            for group in self.encoder_optimizer.param_groups:
                group["lr"] = 1.5e-4 * factor
            self.encoder_optimizer.step()
        decay = min(0.997, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for name, parameter in self._named():
                self.average[name].lerp_(parameter, 1 - decay)
        self.step += 1
        return losses

    def averaged(self) -> tuple[SpeechLanguageModel, BlockCausalEncoder]:
        """Models with the averaged weights."""
        model = SpeechLanguageModel(self.data.tokenizer.get_vocab_size(), self.config.codes_count)
        model.load_state_dict({n: t for n, t in self.average.items() if not n.startswith("encoder.")}, strict=False)
        model.thinker.tie()
        encoder = BlockCausalEncoder(EncoderConfig())
        encoder.load_state_dict({n.removeprefix("encoder."): t for n, t in self.average.items() if n.startswith("encoder.")})
        return model.eval(), encoder.eval()

    @torch.no_grad()
    def test(self, input_hz: float = 12.5, limit: int = 77) -> float:
        """Share of held-out recordings whose slots the answer restates exactly."""
        model, encoder = self.averaged()
        before, after = self.data.prompts.around("", "", audio=True)
        right, text = 0, ""
        for clip, slots in self.data.tests[:limit]:
            frames = encoder(scale(torch.from_numpy(clip.mel.astype(np.float32)))[None])[0]
            merged = model.merger.forward(frames, group_lengths(frames, input_hz))
            embed = model.thinker.embed
            prompt = torch.cat((embed(torch.tensor(before[:-1])), model.thinker.audio_start_embedding[None], merged,
                                model.thinker.audio_end_embedding[None], embed(torch.tensor(after[1:]))))
            text = self.data.tokenizer.decode(greedy_text(model.thinker, prompt, self.data.prompts.end[0]))
            right += parse_order(text) == slots
        share = right / len(self.data.tests[:limit])
        print(f"  held out at {input_hz} Hz: {100 * share:.1f} % accepted; {text!r}", flush=True)
        return share

    def run(self) -> None:
        report_at, save_at = self.minutes, self.minutes + 4
        history: list[list[float]] = []
        while self.minutes < self.config.minutes:
            started = time.monotonic()
            losses = self.train_step()
            history.append([float(x.detach()) for x in (losses.text, losses.speech, losses.length, losses.alignment, losses.recognition)])
            self.minutes += (time.monotonic() - started) / 60
            if self.minutes >= report_at:
                mean = np.mean(history, axis=0)
                print(f"step {self.step} at {self.minutes:.1f} min: text {mean[0]:.3f} speech {mean[1]:.3f} length {mean[2]:.3f} "
                      f"alignment {mean[3]:.3f} recognition {mean[4]:.3f}", flush=True)
                history.clear()
                report_at = self.minutes + 1
            if self.minutes >= save_at:
                self.save()
                if self.minutes >= self.config.text_minutes:
                    self.test()
                save_at = self.minutes + 4
        self.save()
        for hz in (12.5, 6.25):
            self.test(hz)


def group_lengths(frames: Tensor, hz: float) -> Tensor:
    """Lengths int64 [G] of the groups that the causal controller cuts frames [T, C] into."""
    similarity = F.cosine_similarity(frames[:-1].float(), frames[1:].float(), dim=-1).detach().numpy()
    starts = np.flatnonzero(group_causal(similarity, hz, ENCODER_HZ, MAX_GROUP))
    return torch.from_numpy(np.diff(np.append(starts, frames.shape[0])))


def word_of_tokens(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """The word (counted by spaces) that each token belongs to; -1 for special tokens and newlines."""
    owner, word = [], 0
    for index, token in enumerate(ids):
        piece = tokenizer.id_to_token(token)
        if piece.startswith("<|") or piece == "Ċ":
            owner.append(-1)
            continue
        word += piece.startswith("Ġ") and index > 0
        owner.append(word)
    return owner


def greedy_text(thinker: Thinker, prompt: Tensor, stop: int, limit: int = 60) -> list[int]:
    """Greedy continuation of prompt embeddings [P, H] up to `stop`."""
    cache = thinker.model.new_cache(1, prompt.shape[0] + limit)
    hidden = thinker.step(prompt[None], cache, [0])
    ids: list[int] = []
    while len(ids) < limit:
        token = int(thinker.text_logits(hidden[:, -1]).argmax(-1))
        if token == stop:
            break
        ids.append(token)
        hidden = thinker.step(thinker.embed(torch.tensor([[token]])), cache, [0])
    return ids


def main(config_path: Path) -> None:
    """`agogic train slm --config FILE`."""
    config = msgspec.toml.decode(config_path.read_bytes(), type=SlmConfig)
    torch.set_num_threads(config.threads)
    SlmTraining(config).run()
