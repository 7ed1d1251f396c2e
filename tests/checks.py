"""What tests ask of an answer: the float64 criterion, the same structure, a model left as it was."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastrec.techniques import Applied, Skip
from fastrec.trees import Tree, build, describe

__all__ = [
    "assert_as_good",
    "assert_near",
    "assert_same_structure",
    "assert_unchanged",
    "call",
    "double",
    "flat",
    "rolled_back",
    "snapshot",
]


def flat(answer: Any) -> list[Tensor]:
    """The tensors of an answer, in order."""
    found: list[tuple[str, Tensor]] = []
    describe(answer, "answer", found)
    return [tensor for _, tensor in found]


def call(function: Callable[..., Any], batch: Any) -> Any:
    """The answer for a batch, given as people give it."""
    with torch.no_grad():
        if isinstance(batch, tuple):
            return function(*batch)
        return function(**batch) if type(batch) is dict and _by_name(function, batch) else function(batch)


def double(model: nn.Module, entry: str, batch: Any) -> list[Tensor]:
    """The model's answer in float64, ids in float features among them: float32 holds no id that float64 does not."""
    wide = copy.deepcopy(model).double()
    held: list[tuple[str, Tensor]] = []
    tree: Tree = describe(batch, "batch", held)
    tensors = [tensor.double() if tensor.is_floating_point() else tensor for _, tensor in held]
    answer = flat(call(getattr(wide, entry), build(tree, tensors)))
    # A model that casts to float32 on its way would be no oracle.
    assert all(tensor.dtype == torch.float64 for tensor in answer if tensor.is_floating_point())
    return answer


def assert_as_good(fast: list[Tensor], original: list[Tensor], exact: list[Tensor]) -> None:
    """Each answer is as near the float64 one as the original's float32 one is, up to a small factor.

    max|fast - exact| <= 2 max|original - exact| + 1e-5, and, as 1e-5 is much where answers are small or right,
    max|fast - exact| <= 8 max|original - exact| + 16 eps max(1, |exact|).
    """
    assert len(fast) == len(original) == len(exact)
    for index, (new, old, right) in enumerate(zip(fast, original, exact, strict=True)):
        assert new.shape == old.shape and new.dtype == old.dtype, f"output {index}"
        if not new.is_floating_point():
            assert torch.equal(new, old), f"output {index}"
        elif new.numel():
            was, now = (float((x.detach().double() - right).abs().max()) for x in (old, new))
            rounding = 16 * torch.finfo(new.dtype).eps * max(1.0, float(right.abs().max()))
            allowed = min(2 * was + 1e-5, 8 * was + rounding)
            assert now <= allowed, (
                f"output {index}: {now:.2e} off, the original {was:.2e}, allowed {allowed:.2e}"
            )


def assert_near(got: list[Tensor], right: list[Tensor], share: float) -> None:
    """Each answer of numbers is off by no more than this share of its length: |got - right| <= share |right|."""
    assert [tensor.shape for tensor in got] == [tensor.shape for tensor in right]
    for index, (new, old) in enumerate(zip(got, right, strict=True)):
        assert new.dtype == old.dtype, f"output {index}"
        if old.is_floating_point():
            off = float((new.double() - old.double()).nan_to_num(0.0, 0.0, 0.0).norm())
            assert off <= share * float(old.double().nan_to_num(0.0, 0.0, 0.0).norm()), f"output {index}"


def assert_same_structure(left: Any, right: Any) -> None:
    """The same containers, keys, dtypes and shapes."""
    a: list[tuple[str, Tensor]] = []
    b: list[tuple[str, Tensor]] = []
    assert describe(left, "answer", a) == describe(right, "answer", b)
    assert [(name, x.dtype, x.shape) for name, x in a] == [(name, x.dtype, x.shape) for name, x in b]


def rolled_back(applied: Applied) -> list[Skip]:
    """Rules that had to be undone; joins that no rule takes apart are skipped as well, and are no failure."""
    return [skip for skip in applied.skipped if skip.rule != "split"]


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that must not change: its tensors bit for bit, modes, attributes."""
    state: dict[str, Any] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # The state dict leaves out buffers that are not saved.
    state |= {name: tensor.clone() for name, tensor in model.named_buffers(remove_duplicate=False)}
    for name, module in model.named_modules():
        state[f"{name}!"] = (module.training, sorted(key for key in vars(module)), type(module))
    for name, parameter in model.named_parameters():
        state[f"{name}?"] = (id(parameter), parameter.requires_grad, parameter.grad is None)
    return state


def unplaced(reason: str) -> str:
    """A reason without where it is: the tests of what is said leave the lines of their models alone."""
    return re.sub(r" \([^()]*:\d+\)", "", reason)


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    """The model is bit for bit as it was."""
    after = snapshot(model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        same = torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        assert same, name


def _by_name(function: Callable[..., Any], batch: dict[str, Any]) -> bool:
    target = function.forward if isinstance(function, nn.Module) else function
    return set(batch) <= set(inspect.signature(target).parameters)
