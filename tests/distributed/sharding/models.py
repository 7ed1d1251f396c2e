"""A model with every kind of lookup, its forms, and ranks of one process in place of a network."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, fx, nn

from fastrec.capture import capture
from fastrec.distributed.sharding import ShardPlan
from fastrec.distributed.sharding.channels import Asked
from fastrec.distributed.sharding.local import LocalPart
from fastrec.program import Program
from fastrec.techniques import Fuse, QuantizeTables, Technique

FORMS: dict[str, tuple[Technique, ...]] = {
    "as it is": (),
    "fused": (Fuse(),),
    "float16": (QuantizeTables(bits=16, least_bytes=0),),
    "int8": (QuantizeTables(bits=8, least_bytes=0),),
    "int4, hot rows exact": (QuantizeTables(bits=4, hot=0.05, least_bytes=0),),
    "fused, int8": (Fuse(), QuantizeTables(bits=8, least_bytes=0)),
}


class Ranker(nn.Module):
    """Users and items by rows, genres as bags of three, a history averaged, and bags of any size without their padding."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(900, 12), nn.Embedding(500, 12)
        self.genres = nn.EmbeddingBag(60, 12, mode="sum")
        self.words = nn.EmbeddingBag(300, 12, mode="mean", padding_idx=0)
        self.tower = nn.Sequential(nn.Linear(5 * 12 + 2, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(
        self, user: Tensor, item: Tensor, history: Tensor, genres: Tensor, words: Tensor, x: Tensor
    ) -> Tensor:
        rows = [self.users(user), self.items(item), self.items(history).mean(1)]
        rows += [self.genres(genres), self.words(words), x]
        return torch.sigmoid(self.tower(torch.cat(rows, 1))).squeeze(1)


def batch(rows: int, seed: int) -> tuple[Tensor, ...]:
    """Ids of which few are asked for often."""
    draw = torch.Generator().manual_seed(seed)

    def ids(size: int, *shape: int) -> Tensor:
        return (torch.rand(*shape, generator=draw) ** 3 * size).long()

    words = ids(300, rows, 4)
    return (
        ids(900, rows), ids(500, rows), ids(500, rows, 5), ids(60, rows, 3), words, torch.randn(rows, 2, generator=draw),
    )  # fmt: skip


@cache
def captured(form: str = "as it is") -> Program:
    """The program in one of its forms."""
    torch.manual_seed(0)
    model = Ranker().eval()
    calibration = [list(batch(64, seed)) for seed in range(4)]
    program = capture(Program.read(model, batch(32, 99), calibration))
    for technique in FORMS[form]:
        program = program.with_model(technique.apply(program).model)
    return program


class Loopback:
    """A sharded program in one process: what one rank asks another one answers, of what it holds itself."""

    def __init__(self, program: Program, plan: ShardPlan) -> None:
        assert isinstance(program.model, fx.GraphModule)
        self.ranks = [LocalPart(program.model, plan, rank, copied=True) for rank in range(plan.world)]
        self.travelled = 0

    def __call__(self, rank: int, *flat: Tensor) -> tuple[Tensor, ...]:
        """The answer to the batch of one rank."""
        me = self.ranks[rank]
        with torch.no_grad():
            values = me.values(flat)
            asked = me.asked(values)
            answers = [
                [self._answer(rank, k, one, owner) for owner in range(len(self.ranks))]
                for k, one in enumerate(asked)
            ]
            return me.outputs(flat, values, asked, answers)

    def _answer(self, rank: int, number: int, asked: Asked, owner: int) -> Tensor:
        channel, held = self.ranks[owner].channels[number], self.ranks[owner].held[number]
        counts = asked.counts[owner].tolist()
        answer = channel.answer(held, counts, asked.bodies[owner])
        sizes = channel.sizes(counts)
        assert (asked.bodies[owner].nbytes, answer.nbytes) == sizes
        self.travelled += sum(sizes) if owner != rank else 0
        return answer
