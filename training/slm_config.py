"""Settings of the language model's stages."""

from __future__ import annotations

import msgspec

from training.channels import Hardships
from training.slm_data import History, Shares


class SlmConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`text_minutes` of training precede the spoken prompts; weights of losses as in FlexiSLM but for the alignment.

    `exact_groups` of the spoken turns are grouped by offline top-k instead of as they come, and into `pauses` of them a
    pause is put. A run begins from the averaged weights of the checkpoint `start_from`, or from the finished model in
    the directory `model`, if one is named. `more_speech`: further stores of customers. With `hardships` the turns are
    heard over telephones and in noisy rooms: `hard` is the folder that `agogic train hard_data` wrote. `transcribed`:
    the recordings are learnt with words as well, the likeliest that the first weights find for their slots. `frozen`:
    parts that stay as they are (merger, thinker, talker). `more_codes`: further folders of the voice's recordings.
    """

    speech: str
    clips: str
    labels: str
    tokenizer: str
    encoder: str
    codes: str
    output: str
    start_from: str = ""
    model: str = ""
    more_speech: tuple[str, ...] = ()
    more_codes: tuple[str, ...] = ()
    hard: str = ""
    hardships: Hardships | None = None
    transcribed: bool = False
    frozen: tuple[str, ...] = ()
    history: History = "last_two_answers"
    shares: Shares = Shares()
    exact_groups: float = 0.0
    pauses: float = 0.0
    text_minutes: float = 0.0
    minutes: float = 45.0
    finetune_encoder_from: float = 1.0
    batch: int = 20
    learning_rate: float = 1.2e-3
    encoder_learning_rate: float = 1.5e-4
    warmup_steps: int = 200
    test_minutes: float = 4.0
    delay_tokens: int = 5
    codes_count: int = 1600
    threads: int = 1
    seed: int = 11
