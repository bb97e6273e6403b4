"""Tables of vectors whose first weights cost nothing where a checkpoint is about to bring others."""

from __future__ import annotations

import torch
from torch import nn


def embedding(rows: int, width: int) -> nn.Embedding:
    """A trainable table [rows, width] of standard normal numbers, as `nn.Embedding` draws them.

    On the meta device nothing is drawn: there it would import torch's compiler, which takes 2 s and 100 MB.
    """
    table = torch.empty(rows, width)
    if not table.is_meta:
        nn.init.normal_(table)
    return nn.Embedding.from_pretrained(table, freeze=False)
