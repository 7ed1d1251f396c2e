"""A ranker on real bookings, from a CSV file to a faster model with a report: `bash examples/demo.sh`."""

from __future__ import annotations

import torch
from bookings import NUMBERS, PAGE, REQUEST, load, offers, quality
from rich.progress import track
from torch import Tensor, nn

import fastrec
from fastrec.render import terminal, write_html


class DeepFM(nn.Module):
    """First order, pairwise products and a tower, over one table per field."""

    def __init__(self, sizes: list[int], numbers: int, width: int = 16) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.weights = nn.ModuleList(nn.Embedding(size, 1) for size in sizes)
        self.norm = nn.BatchNorm1d(numbers)
        layers: list[nn.Module] = []
        for before, after in ((len(sizes) * width + numbers, 256), (256, 128)):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(0.2)]
        self.tower = nn.Sequential(*layers, nn.Linear(128, 1))
        for table in (*self.tables, *self.weights):
            nn.init.normal_(table.weight, std=0.01)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        """The chance that the booking is cancelled, (N,)."""
        rows = torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], 1)
        first = torch.cat([weight(ids[:, i]) for i, weight in enumerate(self.weights)], 1).sum(
            1, keepdim=True
        )
        pairs = 0.5 * (rows.sum(1).square() - rows.square().sum(1)).sum(1, keepdim=True)
        deep = self.tower(torch.cat([rows.flatten(1), self.norm(numbers)], 1))
        return torch.sigmoid(first + pairs + deep).squeeze(1)


def train(model: nn.Module, part: tuple[Tensor, ...], epochs: int = 1, rate: float = 2e-3) -> None:
    """Adam on the log loss; a second pass would learn the training months by heart."""
    *inputs, labels = part
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4)
    for epoch in range(epochs):
        batches = torch.randperm(len(labels)).split(512)
        for chosen in track(batches, f"epoch {epoch + 1} of {epochs}", transient=True):
            loss = nn.functional.binary_cross_entropy(model(*[x[chosen] for x in inputs]), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def trained() -> tuple[DeepFM, dict[str, tuple[Tensor, Tensor, Tensor]]]:
    """The model after the training rows, and the rows of every split."""
    torch.manual_seed(0)
    parts, sizes = load()
    model = DeepFM(sizes, len(NUMBERS))
    train(model, parts["train"])
    return model.eval(), parts


def main() -> None:
    """Load, train, compress, compare."""
    model, parts = trained()
    ids, numbers, _ = parts["test"]
    fast = fastrec.compress(model, (ids[:256], numbers[:256]))
    print(f"test, before: {quality(model, parts['test'])}\ntest, after:  {quality(fast, parts['test'])}\n")
    terminal(fast.report)
    print("\nOne guest's request against many offers: what the guest decides is computed once.\n")
    batch = offers(parts["test"], guest=0, count=100)
    ranker = fastrec.compress(model, batch, request_features=REQUEST)
    assert torch.allclose(ranker(*batch), model(*batch), atol=1e-5)
    terminal(ranker.report)
    write_html(ranker.report, PAGE)
    print(f"\nThe same with charts, to open in a browser: {PAGE}")


if __name__ == "__main__":
    main()
