"""What the tables may take: which forms of a model are small enough, and whether what serves is."""

from __future__ import annotations

from dataclasses import replace

from torch import fx, nn

from .budget import Budget
from .cost import table_bytes
from .measure import tensor_bytes
from .report import Tables
from .rewriting import Rewritten

__all__ = ["small_enough", "tables_of"]


def small_enough(found: Rewritten, budget: Budget | None) -> Rewritten | None:
    """Without the forms whose tables take more than allowed, those of the smallest left at least; None where all may serve.

    Where bytes are to be least, the recipe is the smallest there was.
    """
    if budget is not None and budget.minimize == "bytes" and not found.recipe.exact:
        return replace(found, forms=found.forms[:1])
    if (
        budget is None
        or budget.bytes is None
        or not found.captured
        or _bytes(found.plain.model) <= budget.bytes
    ):
        return None
    sizes = {form.name: _bytes(form.make().model) for form in found.forms if form.main or form.part}
    limit = max(budget.bytes, min(sizes.values()))
    # Other forms hold the tables of the whole recipe, which is the first.
    whole = found.forms[0].name
    return replace(
        found, forms=tuple(form for form in found.forms if sizes.get(form.name, sizes[whole]) <= limit)
    )


def tables_of(serving: nn.Module, budget: Budget | None) -> Tables | None:
    """What the tables of what serves take, beside what they may, if that is said."""
    return None if budget is None or budget.bytes is None else Tables(_bytes(serving), budget.bytes)


def _bytes(model: nn.Module) -> int:
    """What the tables of a model take; all its tensors, where it was not captured, which does not say what is a table."""
    return table_bytes(model) if isinstance(model, fx.GraphModule) else tensor_bytes(model)
