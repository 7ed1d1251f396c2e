"""What an artifact holds of the checkpoint before, beside the tables of the new one."""

from __future__ import annotations

from torch import Tensor, fx, nn

from ..as_called import AsCalled
from ..earlier import Earlier, origins_of
from .contents import Contents
from .graphs import constants_of, path_of

__all__ = ["earlier_in"]


def earlier_in(parts: Contents, graph: fx.GraphModule) -> Earlier:
    """The tables that an artifact holds and what they were made of, for the new checkpoint's plain `graph`."""
    original = parts.original.model
    source = original.source if isinstance(original, AsCalled) else None
    programs = [source.program for source in parts.sources.values()]
    graphs = {id(p.model): _graph(p.model) for p in (*programs, parts.program) if p is not None}
    made = [
        (origin, held[name])
        for gm in graphs.values()
        for held in [constants_of(gm)]
        for name, origin in origins_of(gm).items()
        if name in held
    ]
    before = {} if source is None else _by_path(_graph(source.model))
    return Earlier(before, _by_path(graph), made)


def _by_path(gm: fx.GraphModule) -> dict[str, Tensor]:
    """The matrices of a graph, by where they were in the model."""
    return {path_of(gm, name): tensor for name, tensor in constants_of(gm).items() if tensor.ndim == 2}


def _graph(model: nn.Module) -> fx.GraphModule:
    assert isinstance(model, fx.GraphModule)
    return model
