"""FlexiCodec-TTS from text: what it reads, and that voice, text and sampling reach the network."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.golden.codec import TINY_CODEC, TINY_SENSEVOICE
from benchmarks.golden.speech import TINY_ARTTS
from models.codec.narrator import Narrator
from models.codec.spoken_text import PhonemeError, SpokenText, english_letters, espeak
from models.errors import CheckpointError
from streaming.flexicodec.artts import ArSampling, ArTts
from streaming.flexicodec.fbank import FEATURES, SenseVoiceFrontEnd
from streaming.flexicodec.flexicodec import FlexiCodec
from tests.support.golden import golden_tensors

GREEDY = ArSampling(top_k=1, max_length_ratio=1.0)


def whisper() -> Tokenizer:
    """A byte-level tokenizer in Whisper's form that knows no merges and two languages."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: TINY_ARTTS.text_vocabulary - 2]
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|en|>", "<|de|>"])
    return tokenizer


@pytest.fixture(scope="module")
def narrator() -> Narrator:
    torch.manual_seed(3)
    codec = FlexiCodec(TINY_CODEC, TINY_SENSEVOICE, SenseVoiceFrontEnd(torch.zeros(FEATURES), torch.ones(FEATURES)))
    network = ArTts(replace(TINY_ARTTS, speech_vocabulary=8**5))
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    reader = SpokenText(whisper(), "whisper", str.upper)
    return Narrator(reader, network.requires_grad_(False).eval(), codec.requires_grad_(False).eval())


def test_english_is_written_in_the_models_letters() -> None:
    said = {"Hello": "həlˈoʊ", "thing": "θˈɪŋ", "good bird": "ɡˈʊd bˈɜːd", "Zürich": "(de)tsˈyːrɪç(en-us)"}
    assert english_letters("Hello, thing… (good bird)! Zürich", said.__getitem__) == (
        "həloυ, θιng… (gυd bə~d)! tsy~rιç"
    )


@pytest.mark.skipif(not (shutil.which("espeak-ng") or shutil.which("espeak")), reason="espeak-ng is not installed")
def test_espeak_gives_the_phonemes() -> None:
    assert english_letters("One, two: three?", espeak) == "wαn, tu~: θri~?"


def test_without_espeak_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(PhonemeError, match="install the package espeak-ng"):
        espeak("one")


def test_ids_begin_with_the_language_and_the_recordings_words() -> None:
    tokenizer, reader = whisper(), SpokenText(whisper(), "whisper", str.upper)

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text).ids

    assert reader.ids("ab.", reference="cd") == [tokenizer.token_to_id("<|en|>"), *ids("CD, AB.")]
    assert reader.ids("ab.", "de") == [tokenizer.token_to_id("<|de|>"), *ids("ab.")], "only English is phonemes"
    with pytest.raises(CheckpointError, match="no mark for the language 'xx'"):
        reader.ids("ab", "xx")


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read .* take Whisper large-v3's"):
        SpokenText.load(tmp_path / "tokenizer.json")
    whisper().save(str(tmp_path / "tokenizer.json"))
    assert SpokenText.load(tmp_path / "tokenizer.json").ids("ab", "de") == whisper().encode("<|de|>ab").ids


def test_a_sentence_is_said_in_the_voice_of_a_recording(narrator: Narrator) -> None:
    audio = golden_tensors("flexicodec", "audio.safetensors")["b_16k"]
    voice = narrator.voice(audio, "a", frame_rate=0.86)
    assert sum(voice.tokens.durations) == 23
    codes = narrator.codes("bcd", voice, sampling=GREEDY)
    direct = narrator.network.generate(narrator.reader.ids("bcd", reference="a"), 0.86, voice.tokens, GREEDY)
    heard = [(code, frames) for code, frames in zip(direct.codes, direct.durations, strict=True) if frames]
    assert heard and [*zip(codes.semantic.tolist(), codes.durations.tolist(), strict=True)] == [
        (code, min(frames, 8)) for code, frames in heard
    ]
    other = narrator.codes("bcd", sampling=GREEDY)
    assert other.semantic.tolist() != codes.semantic.tolist(), "a voice must make a difference"


def test_sound_lasts_as_long_as_its_tokens(narrator: Narrator) -> None:
    seeds = [torch.Generator().manual_seed(1) for _ in range(2)]
    codes, sound = narrator.codes("bc", generator=seeds[0]), narrator.say("bc", generator=seeds[1])
    assert len(sound) == 1280 * int(codes.durations.sum()) - 16
