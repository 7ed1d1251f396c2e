"""What the tables may take: which forms of a model are small enough, and whether what serves is."""

from __future__ import annotations

from dataclasses import replace

from torch import fx, nn

from .budget import Budget
from .cost import table_bytes
from .journal import Journal
from .measure import tensor_bytes
from .rewriting import Rewritten
from .wording import amount

__all__ = ["small_enough", "tell"]


def small_enough(found: Rewritten, budget: Budget | None) -> Rewritten | None:
    """Without the forms whose tables take more than allowed, those of the smallest left at least; None where all may serve."""
    if (
        budget is None
        or budget.bytes is None
        or not found.captured
        or _bytes(found.plain.model) <= budget.bytes
    ):
        return None
    sizes = {form.name: _bytes(form.make().model) for form in found.forms if form.main}
    limit = max(budget.bytes, min(sizes.values()))
    # Other forms hold the tables of the whole recipe, which is the first.
    whole = found.forms[0].name
    return replace(
        found, forms=tuple(form for form in found.forms if sizes.get(form.name, sizes[whole]) <= limit)
    )


def tell(work: Journal, budget: Budget | None, serving: nn.Module) -> bool:
    """Notes what the tables of what serves take beside what they may, and says whether that is within."""
    if budget is None or budget.bytes is None:
        return True
    taken = _bytes(serving)
    met = taken <= budget.bytes
    end = "allowed" if met else "allowed: no choice was found that takes less and may serve"
    work.notes.append(f"the tables take {amount(taken)} as they serve, {amount(budget.bytes)} are {end}")
    return met


def _bytes(model: nn.Module) -> int:
    """What the tables of a model take; all its tensors, where it was not captured, which does not say what is a table."""
    return table_bytes(model) if isinstance(model, fx.GraphModule) else tensor_bytes(model)
