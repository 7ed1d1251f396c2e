"""Will somebody like a film? A ranker of real ratings, trained and put into int8: `python examples/movietweetings.py`."""

from __future__ import annotations

import torch
from bookings import quality
from films import load
from hotel_bookings import train
from torch import Tensor, nn

import fastrec
from fastrec.measure import evaluator
from fastrec.render import terminal
from fastrec.techniques import Fuse, QuantizeLinears, QuantizeTables


class Ranker(nn.Module):
    """A DeepFM of the user, the film, its year, a bag of its genres, and one of the films that the user liked last."""

    def __init__(self, sizes: dict[str, int], width: int = 32) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(sizes[name], width) for name in ("users", "films", "years"))
        self.weights = nn.ModuleList(nn.Embedding(sizes[name], 1) for name in ("users", "films", "years"))
        self.genres = nn.EmbeddingBag(sizes["genres"], width, mode="sum", padding_idx=0)
        layers: list[nn.Module] = []
        for before, after in ((5 * width, 256), (256, 128)):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(0.3)]
        self.tower = nn.Sequential(*layers, nn.Linear(128, 1))
        for table in (*self.tables, *self.weights, self.genres):
            nn.init.normal_(table.weight, std=0.01)
            nn.init.zeros_(table.weight[:1])  # the row of what is not known, or not there

    def forward(self, ids: Tensor, genres: Tensor, liked: Tensor) -> Tensor:
        """The chance that the user likes the film, (N,)."""
        films = self.tables[1].weight
        rows = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        rows.append(self.genres(genres))
        rows.append(nn.functional.embedding_bag(liked, films, mode="sum", padding_idx=0))
        fields = torch.stack(rows, 1)
        first = torch.cat([weight(ids[:, i]) for i, weight in enumerate(self.weights)], 1).sum(
            1, keepdim=True
        )
        pairs = 0.5 * (fields.sum(1).square() - fields.square().sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(first + pairs + self.tower(fields.flatten(1))).squeeze(1)


def trained() -> tuple[Ranker, dict[str, tuple[Tensor, ...]]]:
    """The model after the training ratings, and the ratings of every split."""
    torch.manual_seed(0)
    parts, sizes = load()
    model = Ranker(sizes)
    train(model, parts["train"])
    return model.eval(), parts


def main() -> None:
    """Load, train, compress within 0.0002 of AUC, compare on ratings that no choice has seen, and say what is certain."""
    model, parts = trained()
    *known, _ = parts["train"]
    *inputs, labels = parts["valid"]
    chosen = torch.randperm(len(known[0]))[:4096].split(256)
    fast = fastrec.compress(
        model,
        tuple(x[:256] for x in inputs),
        recipe=[Fuse(), QuantizeTables(least_bytes=0), QuantizeLinears()],
        calibration=[tuple(x[rows] for x in known) for rows in chosen],
        evaluate=evaluator(zip(*(x.split(1000) for x in inputs), strict=True), labels, ["auc"]),
        budget=fastrec.Budget(max_loss={"auc": 0.0002}),
    )
    print(f"test, before: {quality(model, parts['test'])}\ntest, after:  {quality(fast, parts['test'])}\n")
    terminal(fast.report)
    print(
        "\nVerdict:",
        *fast.report.accuracy,
        *(skip.reason for skip in fast.report.skipped if skip.site == "budget"),
    )


if __name__ == "__main__":
    main()
