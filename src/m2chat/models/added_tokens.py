"""Tables of token rows with a few rows behind them for added tokens, so that the big tables can stay frozen.

Shapes: D model width, V words of the base vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ExtendedEmbedding(nn.Embedding):
    """An embedding table with a few added rows behind it.

    Args:
        base: Table to take over, (V, D).
        extra: Number of added rows.
        start: Number of the first added token, V or more.
    """

    def __init__(self, base: nn.Embedding, extra: int, start: int) -> None:
        super().__init__(base.num_embeddings, base.embedding_dim, _weight=base.weight)
        self.start = start
        self.extra = nn.Parameter(torch.zeros(extra, base.embedding_dim))

    def forward(self, input: Tensor) -> Tensor:
        """Rows of the tokens 0 ... V - 1 and start ... start + extra - 1."""
        added = input >= self.start
        rows = F.embedding(input.masked_fill(added, 0), self.weight)
        extra = F.embedding((input - self.start).clamp(min=0), self.extra)
        return torch.where(added[..., None], extra.to(rows.dtype), rows)


class ExtendedHead(nn.Linear):
    """The output layer with a few added rows behind it.

    Args:
        base: Layer to take over, without a bias.
        extra: Number of added rows.
        start: Number of the first added token, V or more.
    """

    def __init__(self, base: nn.Linear, extra: int, start: int) -> None:
        super().__init__(base.in_features, base.out_features, bias=False)
        self.start = start
        self.weight = base.weight
        self.extra = nn.Parameter(torch.zeros(extra, base.in_features))

    def forward(self, input: Tensor) -> Tensor:
        """Logits of start + extra tokens; of those that have no row they are the least that there is."""
        base, extra = F.linear(input, self.weight), F.linear(input, self.extra.to(input.dtype))
        if gap := self.start - self.out_features:
            base = F.pad(base, (0, gap), value=torch.finfo(base.dtype).min)
        return torch.cat([base, extra], -1)
