"""The embedded model's tokenizer: byte-level BPE over the coffee world and open-vocabulary sentences.

Special tokens are named as in Qwen's vocabulary.
"""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from training.sentences import collect_sentences
from training.world import sample_turn

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|audio_eos|>", "<|audio|>")
VOCABULARY = 1024


def train_tokenizer(vocabulary: int = VOCABULARY) -> Tokenizer:
    """Every word of the coffee world becomes one token; what is left goes to frequent English pieces."""
    rng = random.Random(5)
    texts: list[str] = []
    for _ in range(6000):
        turn = sample_turn(rng)
        texts += [" " + turn.user, turn.reply]
    texts += [" " + sentence for sentence in collect_sentences()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def main(output: Path) -> None:
    """Writes `tokenizer.json`."""
    train_tokenizer().save(str(output))
