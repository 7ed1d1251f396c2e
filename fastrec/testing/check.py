"""`check_compressed`: whether a compressed model may stand for its original, on real batches and on what may go wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ..compressed import CompressedModel
from ..errors import InputError
from .pair import Pair
from .refusals import check_ids, check_nonfinite
from .rows import check_rows
from .state import changed, state_of
from .threads import check_threads
from .values import Allowed, Answer, same_form, same_values

__all__ = ["check_compressed"]

ROWS = (0, 1, 2, 3, 33)
FURTHER = 4.0  # the report saw some rows, and others may be worse


def check_compressed(
    model: nn.Module | Callable[..., Any],
    fast: CompressedModel,
    batches: Iterable[Any],
    *,
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """Raise `AssertionError` unless `fast` may stand for `model`; each failure says what, where, got and expected.

    `model` is what was compressed, a module or a method of one; `batches` are real batches in its own form, each of one
    request where features of the request were declared. What is asked:

    - Answers have the model's structure, keys, shapes and dtypes, on each batch and on 0, 1, 2, 3 and 33 of its rows.
    - Values: |fast - model| <= atol + rtol |model| where either is given (the other is 0). Without, they are equal up
      to float rounding where `fast.exact`, and else differ by at most 4 times what `fast.report` saw: it looked at some
      rows, and others may be worse. Integers are equal, unless the report says that some differ.
    - A row's answer does not depend on the rows beside it: others, in another order, of 1e3 or 1e30, or none.
    - Where ids are checked, one that no table has raises `IdOutOfRangeError` naming feature and row.
    - A NaN raises `InputError` naming feature and row; with `on_nonfinite="propagate"` it leaves other rows as they were.
    - Eight threads get what one gets, bit for bit.
    - The model's tensors and modes and the random states are as they were.

    Rows are not asked alone where the model itself relates the rows of a batch. Numbers of rows that the model does not
    take are left out.

    Raises `InputError` for arguments that do not fit. Cost: some calls for each feature, two hundred from threads, two
    passes over the model's tensors.

    Example:
        >>> import torch
        >>> from fastrec import compress
        >>> tower = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)).eval()
        >>> batches = [torch.randn(4, 8), torch.randn(7, 8)]
        >>> fast = compress(tower, batches[0], batch_sizes=(1,), seconds=1, backends=[], progress=False)
        >>> check_compressed(tower, fast, batches)
    """
    given = _read(fast, batches, rtol, atol)
    pair = Pair.of(model, fast, given)
    before, private = state_of(pair.given), state_of(pair.original.model)
    answers = [*_whole(pair, given), *_sizes(pair)]
    same_values(answers, _allowed(fast, rtol, atol))
    if pair.by_row:
        check_rows(pair)
    check_ids(pair)
    check_nonfinite(pair)
    check_threads(pair)
    # What the model's own calls write into its buffers, its private copy shows; all other tensors the two share.
    buffers = {f"tensor {name!r}" for name, _ in pair.given.named_buffers(remove_duplicate=False)}
    own = buffers & set(changed(private, state_of(pair.original.model)))
    names = [name for name in changed(before, state_of(pair.given)) if name not in own]
    if names:
        raise AssertionError(
            f"calls of the compressed model changed {', '.join(names[:5])}: expected every tensor and mode of the original and "
            "every random state as it was"
        )


def _read(fast: Any, batches: Any, rtol: float | None, atol: float | None) -> list[Any]:
    if not isinstance(fast, CompressedModel):
        raise InputError(f"fast is a {type(fast).__name__}, expected what fastrec.compress returned")
    if isinstance(batches, (Tensor, dict, str)):
        raise InputError(f"batches is a {type(batches).__name__}, expected a list of batches: [batch]")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not 0 <= value < float("inf"):
            raise InputError(f"{name} is {value}, expected a number from 0 on")
    given = list(batches)
    if not given:
        raise InputError("batches is empty: give at least one real batch")
    return given


def _allowed(fast: CompressedModel, rtol: float | None, atol: float | None) -> Allowed:
    seen = fast.report.fidelity
    whole = fast.exact or seen is None or not seen.differing
    if rtol is not None or atol is not None:
        said = f"atol {atol or 0:g} + rtol {rtol or 0:g} times the expected"
        return Allowed(atol or 0.0, rtol or 0.0, said, whole)
    if fast.exact or seen is None:
        return Allowed(None, 0.0, "float rounding, as what serves is exact", whole)
    most = max(FURTHER * seen.max_abs, 1e-5)
    said = f"{most:.3g}, {FURTHER:g} times what the report saw on other rows; give atol to hold it to a bound of your own"
    return Allowed(most, 1e-5, said, whole)


def _whole(pair: Pair, batches: list[Any]) -> list[Answer]:
    """Every batch as it was given."""
    found = []
    for index, (batch, flat) in enumerate(zip(batches, pair.flat, strict=True)):
        where = f"batch {index}"
        args, kwargs = pair.fast.call_of(batch)
        found.append(same_form(where, pair.expected(flat), pair.called(where, args, kwargs)))
    return found


def _sizes(pair: Pair) -> list[Answer]:
    """Other numbers of rows of the same batches."""
    found = []
    for index, count in enumerate(ROWS if pair.layout.rows is not None else ()):
        flat = pair.some(count, index)
        if flat is None:
            break
        try:
            expected = pair.expected(flat)
        except Exception:  # noqa: BLE001, S112 - a number of rows that the model itself does not take
            continue
        where = f"{count} row{'' if count == 1 else 's'} of a batch"
        found.append(same_form(where, expected, pair.answer(flat, where)))
    return found
