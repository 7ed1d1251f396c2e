"""A text tower on the titles of real films, in int8: `pip install -e ".[text]"`, `python examples/title_tower.py`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from films import read
from minilm import Tower, tokens
from torch import Tensor
from torch.nn import functional

import fastrec
from fastrec.capture import capture
from fastrec.program import Program
from fastrec.render import terminal
from fastrec.techniques import Fuse, QuantizeLinears
from fastrec.techniques.quantization import sensitivities

SHOWN, KNOWN, SIZE, LEFT = 2000, 512, 32, 3
"""Titles to compare, to calibrate on and in a batch; and layers that stay in float: a twelfth of them."""


@torch.no_grad()
def embedded(model: Callable[..., Tensor], titles: tuple[Tensor, ...]) -> Tensor:
    """The vectors of all titles, 32 at a time."""
    return torch.cat([model(*batch) for batch in zip(*(x.split(SIZE) for x in titles), strict=True)])


def compared(right: Tensor, other: Tensor, nearest: int = 10) -> str:
    """How near vectors of the same titles are, and how many of each title's nearest among the others they share."""
    cosines = functional.cosine_similarity(right, other)
    places = [(x @ x.t()).fill_diagonal_(-1).topk(nearest).indices for x in (right, other)]
    shared = (places[0].unsqueeze(2) == places[1].unsqueeze(1)).any(2).float().mean()
    return f"cosine {cosines.mean():.4f}, at least {cosines.min():.4f}; {shared:.1%} of the nearest {nearest} kept"


def sensitive(tower: Tower, titles: tuple[Tensor, ...]) -> tuple[str, ...]:
    """The layers that move the vectors of these titles most, each alone in int8: as many as are left in float."""
    program = capture(Program.read(tower, titles))
    moved = sensitivities(program.with_model(Fuse().apply(program).model))
    return tuple(sorted(moved, key=lambda site: -moved[site])[:LEFT])


def main() -> None:
    """Load, encode, compress exactly and in int8, compare on titles that no choice has seen."""
    torch.manual_seed(0)
    tower = Tower().eval()
    titles = tokens([film["title"] for film in read("items")])
    order = torch.randperm(len(titles[0]))
    shown, known = (tuple(x[rows] for x in titles) for rows in order[: SHOWN + KNOWN].split(SHOWN))
    batch, right = tuple(x[:SIZE] for x in shown), embedded(tower, shown)
    left = sensitive(tower, tuple(x[:64] for x in known))
    calibration = [*zip(*(x.split(64) for x in known), strict=True)]
    for recipe in ([Fuse()], [Fuse(), QuantizeLinears()], [Fuse(), QuantizeLinears(without=left)]):
        fast = fastrec.compress(
            tower, batch, recipe=recipe, calibration=calibration, batch_sizes=(1, SIZE), seconds=180
        )
        print(f"\n{recipe[-1]}: {compared(right, embedded(fast, shown))}\n")
        terminal(fast.report)


if __name__ == "__main__":
    main()
