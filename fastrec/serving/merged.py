"""Several requests in one call: their candidates joined, each answered for its own request, in the way measured fastest.

    merged(u, C, offsets)[n]  =  fast(u[r], C[offsets[r] : offsets[r + 1]])[n - offsets[r]]       offsets[r] <= n < offsets[r + 1]

up to float rounding, as rows are answered by themselves. What cannot be merged is called request by request.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backends import Backend
from ..errors import InputError
from ..nonfinite import Apart
from ..trees import tensors_of
from .given import cast
from .joined import Joined, Joiner
from .ways import choose_way

if TYPE_CHECKING:
    from ..compressed import CompressedModel

__all__ = ["Merged"]


class Merged:
    """Answers several requests by one call of what a compressed model knows.

    `merged.score_many(requests)` takes batches as the model does, one for each request, and gives an answer for each;
    `merged(batch, offsets)` takes them as one batch. `way` says how they are merged:

    - `ragged`, and by which backend: what a request alone decides is computed once for each, the rest for all candidates at once;
    - `whole batch`: request features are repeated for every candidate;
    - `rows`: there are no request features, and rows are joined as they are;
    - `one by one`: nothing is merged, `reason` says why.

    Each way that there is answers drawn requests as the model does, or is left out; then they take turns on `at`, a number
    of requests and how many candidates each has, for some `seconds`, and the fastest serves (`trials` says how fast each was). `way` names
    one to use in place of that, `backends` those that may run the first (None: those that serve the model). Calls are thread-safe.

    Raises `InputError` for a way that there is not. Cost: a capture of the original and the rules that rewrite it, seconds, and
    tables that these fold.

    Example:
        >>> from fastrec import compress
        >>> class Dot(torch.nn.Module):
        ...     def forward(self, user, item):
        ...         return (user * item).sum(-1)
        >>> batch = (torch.ones(4, 2), torch.randn(4, 2))
        >>> fast = compress(
        ...     Dot(), batch, request_features=["user"], backends=[], batch_sizes=(1,), seconds=1, progress=False
        ... )
        >>> merged = fast.merged(way="whole batch")
        >>> users, items = torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([[1.0, 2.0], [5.0, 0.0], [3.0, 4.0]])
        >>> merged((users, items), offsets=[0, 2, 3])
        tensor([3., 5., 4.])
    """

    def __init__(
        self,
        fast: CompressedModel,
        *,
        at: tuple[int, int] = (8, 100),
        backends: Sequence[Backend] | None = None,
        seconds: float = 2.0,
        way: str | None = None,
    ) -> None:
        if len(at) != 2 or not all(type(count) is int and count > 0 for count in at):
            raise InputError(
                f"at takes a number of requests and how many candidates each has, (8, 100): got {at!r:.80}"
            )
        self._fast, self._layout = fast, fast.original.layout
        self._joiner = Joiner(self._layout, fast.once)
        self._apart = Apart(self._layout) if fast.separates else None
        self._process = os.getpid()
        chosen = choose_way(
            fast, self._joiner, self._one_by_one, at=at, backends=backends, seconds=seconds, wanted=way
        )
        self.way, self.reason, self.trials = chosen.name, chosen.reason, chosen.trials
        self._call = chosen.call
        if way not in (None, self.way):
            raise InputError(f"there is no way {way!r:.80} to merge requests of this model: {self.reason}")

    def __repr__(self) -> str:
        return f"Merged({self.way}{f': {self.reason}' if self.reason else ''})"

    def __call__(self, batch: Any, offsets: Tensor | Sequence[int]) -> Any:
        """The answer for the candidates of several requests, in the model's own structure.

        `batch` is as the model takes it: N candidates, those of each request one after the other, and of each request
        feature a row for each of R requests, or for each candidate. `offsets` (R + 1) say where the candidates of each
        begin, and where the last ones end.

        Raises what the model does, and `InputError` at offsets that do not fit and for a model whose batches cannot be joined.
        """
        if self._joiner.unable:
            raise InputError(
                f"these requests cannot be given as one batch, call score_many: {self._joiner.unable}"
            )
        flat = self._flat(batch)
        try:
            ends = torch.as_tensor(offsets)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"offsets are whole numbers, one more than there are requests: got {type(offsets).__name__}"
            ) from error
        joined = self._joiner.read(flat, ends)
        if joined.sizes and self._merges(joined.flat):
            guard = self._fast.guard
            if guard is not None and guard.computed is None:
                guard(joined.flat)
            elif guard is not None:
                for part in self._joiner.cut(joined):
                    guard(part)
            return self._layout.result(self._run(joined))
        parts = self._joiner.cut(joined) if joined.sizes else [self._fast.once.first(flat)]
        calls = [self._layout.arguments(part) for part in parts]
        answers = [tensors_of(self._fast(*args, **kwargs)) for args, kwargs in calls]
        return self._layout.result(self._joiner.answers(answers))

    def score_many(self, requests: Sequence[Any], *, return_errors: bool = False) -> list[Any]:
        """The answer to each of several requests, given as the model takes one.

        Raises the error of the first request that does not fit; with `return_errors` that request's answer is the error, and the
        others have theirs. Raises `InputError` for what is no list of requests.
        """
        if isinstance(requests, (str, Mapping, Tensor)) or not isinstance(requests, Iterable):
            raise InputError(
                f"score_many takes a list of requests, each as the model takes one, got one {type(requests).__name__}: "
                "give [request], or call the model itself"
            )
        requests = list(requests)
        answers: dict[int, Any] = {}
        merged: dict[int, list[Tensor]] = {}
        for place, request in enumerate(requests):
            try:
                flat = self._read(request)
                if flat is None or not self._joins(flat, merged):
                    answers[place] = self._alone(request)
                else:
                    merged[place] = flat
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one request is its answer
                answers[place] = error
        for place, refusal in self._refused(merged).items():
            answers[place] = refusal
            del merged[place]
        answers |= self._together(requests, merged)
        for place in () if return_errors else range(len(requests)):
            if isinstance(answers[place], Exception):
                answers[place].add_note(f"in request {place} of {len(requests)}")
                raise answers[place]
        return [answers[place] for place in range(len(requests))]

    def _together(self, requests: Sequence[Any], merged: Mapping[int, list[Tensor]]) -> dict[int, Any]:
        """The answers to requests that are merged; one by one, each with its own error, where together they have one."""
        if not merged:
            return {}
        try:
            joined = self._joiner.join(list(merged.values()))
            found = self._joiner.split(self._run(joined), joined.sizes)
        except Exception:  # noqa: BLE001 - without a guard in front whatever a kernel raises at one request's rows
            answers: dict[int, Any] = {}
            for place in merged:
                try:
                    answers[place] = self._alone(requests[place])
                except Exception as error:  # noqa: BLE001 - whatever is wrong with one request is its answer
                    answers[place] = error
            return answers
        return {place: self._layout.result(one) for place, one in zip(merged, found, strict=True)}

    def _read(self, request: Any) -> list[Tensor] | None:
        """The flat batch of one request, with one row of its features; None for one that is not merged."""
        if self._joiner.unable:
            return None
        flat = self._flat(request)
        flat = self._fast.once.one(flat) if self._fast.once else flat
        rows = self._joiner.count(flat)
        return flat if rows and rows not in self._layout.exempt and self._merges(flat) else None

    def _flat(self, batch: Any) -> list[Tensor]:
        args, kwargs = self._layout.call_of(batch)
        flat = self._layout.flatten(args, kwargs)
        return [cast(feature, tensor) for feature, tensor in zip(self._layout.features, flat, strict=True)]

    def _merges(self, flat: Sequence[Tensor]) -> bool:
        """Whether a batch has the shapes that graphs were made for, and nothing that a session does not see."""
        clean = self._apart is None or self._apart.clean(list(flat))
        return clean and self._joiner.fits(flat) and os.getpid() == self._process

    def _joins(self, flat: list[Tensor], merged: Mapping[int, list[Tensor]]) -> bool:
        """Whether a request may be answered in one call with the others."""
        return not merged or self._joiner.alike(flat, next(iter(merged.values())))

    def _refused(self, merged: Mapping[int, list[Tensor]]) -> dict[int, Exception]:
        """The requests that hold what no model takes, and why."""
        guard, errors = self._fast.guard, dict[int, Exception]()
        if guard is None or not merged:
            return errors
        if guard.computed is None:
            with contextlib.suppress(Exception):
                guard(self._joiner.join(list(merged.values())).flat)
                return errors
        for place, flat in merged.items():
            try:
                guard(flat)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one request is its answer
                errors[place] = error
        return errors

    def _run(self, joined: Joined) -> Sequence[Tensor]:
        """The flat answers for all candidates."""
        if len(joined.sizes) == 1 or joined.rows in self._layout.exempt:
            return self._one_by_one(joined)
        return self._call(joined)

    def _alone(self, request: Any) -> Any:
        args, kwargs = self._layout.call_of(request)
        return self._fast(*args, **kwargs)

    def _one_by_one(self, joined: Joined) -> Sequence[Tensor]:
        parts = [self._fast.session(self._joiner.count(flat))(*flat) for flat in self._joiner.cut(joined)]
        return self._joiner.answers(parts)
