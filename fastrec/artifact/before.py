"""What an artifact holds of the checkpoint before, beside the tables of the new one."""

from __future__ import annotations

from torch import Tensor, fx, nn

from ..as_called import AsCalled
from ..earlier import Earlier, Origin, origins_of
from .contents import Contents
from .graphs import constants_of, path_of

__all__ = ["earlier_in", "shorter_than"]

_NAMED = 3  # tables that an error names
_MODEL = "model."  # what stands before the names of tensors in a captured graph


def earlier_in(parts: Contents, graph: fx.GraphModule) -> Earlier:
    """The tables that an artifact holds and what they were made of, for the new checkpoint's plain `graph`."""
    before, made = _held(parts)
    return Earlier(before, _by_path(graph), made)


def shorter_than(parts: Contents, model: nn.Module) -> str:
    """Which tables of a model have fewer rows than an artifact holds, in words, or nothing."""
    before, made = _held(parts)
    rows = {one.path: one.rows for origin, _ in made for one in origin.regions}
    rows |= {path: len(table) for path, table in before.items()}
    now = {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }
    shorter = [
        f"the table {name!r} has {len(now[name]):,} rows, it had {count:,}"
        for path, count in rows.items()
        if (name := path.removeprefix(_MODEL)) in now and now[name].ndim and len(now[name]) < count
    ]
    more = f" (and {len(shorter) - _NAMED} others are shorter)" if len(shorter) > _NAMED else ""
    return f"{', '.join(shorter[:_NAMED])}{more}"


def _held(parts: Contents) -> tuple[dict[str, Tensor], list[tuple[Origin, Tensor]]]:
    """The model's own tables, by where they were in it, and what was made of them."""
    original = parts.original.model
    source = original.source if isinstance(original, AsCalled) else None
    programs = [source.program for source in parts.sources.values()]
    graphs = {id(p.model): p.graph for p in (*programs, parts.program) if p is not None}
    made = [
        (origin, held[name])
        for gm in graphs.values()
        for held in [constants_of(gm)]
        for name, origin in origins_of(gm).items()
        if name in held
    ]
    return {} if source is None else _by_path(source.graph), made


def _by_path(gm: fx.GraphModule) -> dict[str, Tensor]:
    """The matrices of a graph, by where they were in the model."""
    return {path_of(gm, name): tensor for name, tensor in constants_of(gm).items() if tensor.ndim == 2}
