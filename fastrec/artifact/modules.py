"""A model that could not be captured: the caller gives it back, and what was done to its modules is kept.

What differs is a module whose linear map is in 8-bit integers now (`Int8Linear`, with its settings and tensors), or one
that has other tensors or another width than before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, UnsafeArtifactError
from ..ops.layers import Int8Linear
from .manifest import Modules
from .tensors import Stored, Tensors

__all__ = ["Edits", "check_model", "edit", "edits_of", "model_digest"]

_NUMBERS = (
    "in_features",
    "out_features",
    "num_features",
    "normalized_shape",
    "embedding_dim",
    "num_embeddings",
)


class Edits:
    """What makes one model of another: for each module that differs its settings and tensors."""

    def __init__(self, before: nn.Module, after: nn.Module) -> None:
        self.modules: dict[str, tuple[dict[str, Any], dict[str, Tensor | None]]] = {}
        old = dict(before.named_modules(remove_duplicate=False))
        for path, module in after.named_modules(remove_duplicate=False):
            if path not in old:
                raise InputError(f"module {path!r} is not in the model as it was: it cannot be saved")
            settings, tensors = _difference(old[path], module, path)
            if settings or tensors:
                self.modules[path] = settings, tensors

    def add_to(self, tensors: Tensors) -> None:
        """The tensors, to be written."""
        for path, (_, held) in self.modules.items():
            for name, tensor in held.items():
                if tensor is not None:
                    tensors.add(f"modules.{path}.{name}", tensor)

    def data(self, tensors: Tensors) -> dict[str, Any]:
        """As data that JSON holds."""
        return {
            path: {
                "settings": settings,
                "tensors": {name: None if t is None else tensors.refer(t) for name, t in held.items()},
            }
            for path, (settings, held) in self.modules.items()
        }


def edits_of(model: nn.Module, entry: str, edited: Mapping[str, Any]) -> Modules:
    """What the manifest says of the model that is to be given back."""
    tensors = {
        name: [str(t.dtype).removeprefix("torch."), *t.shape] for name, t in model.state_dict().items()
    }
    return Modules(type(model).__qualname__, tensors, model_digest(model, tensors), entry, edited)


def model_digest(model: nn.Module, names: Collection[str]) -> str:
    """One digest of these tensors of a model, their names and shapes; single whole numbers, which may count calls, aside."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name not in names or (not tensor.ndim and not tensor.is_floating_point()):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_model(model: nn.Module, wanted: Modules) -> None:
    """Raises `InputError` unless the model is the one that was compressed; it may hold buffers by now that were empty then."""
    found = {name: [str(t.dtype).removeprefix("torch."), *t.shape] for name, t in model.state_dict().items()}
    for name in (*wanted.tensors, *(name for name, _ in model.named_parameters(remove_duplicate=False))):
        expected, got = wanted.tensors.get(name), found.get(name)
        if expected != got:
            raise InputError(
                f"the model given is another than was compressed: {name!r} is {got}, expected {expected}"
            )
    if model_digest(model, wanted.tensors) != wanted.sha256:
        raise InputError(
            "the model given is another than was compressed: its tensors have the same shapes and other numbers"
        )


def edit(model: nn.Module, edited: Mapping[str, Any], stored: Stored, where: str) -> None:
    """Does to a draft what was done to the model. Its tensors are not written to."""
    modules = dict(model.named_modules(remove_duplicate=False))
    done: set[int] = set()
    for path, change in edited.items():
        module, spot = modules.get(path), f"{where}: module {path!r:.80}"
        if module is None or not isinstance(change, dict) or set(change) != {"settings", "tensors"}:
            raise UnsafeArtifactError(f"{spot} is not one of the model's, or not a change")
        if id(module) in done:
            continue
        done.add(id(module))
        settings, places = change["settings"], change["tensors"]
        held = {name: None if p is None else stored.tensor(p, spot) for name, p in places.items()}
        if "x_scale" in settings:
            if not isinstance(module, nn.Linear) or not {"codes", "weight_scale"} <= set(held):
                raise UnsafeArtifactError(f"{spot} is no linear map")
            codes, scale = held.pop("codes"), held.pop("weight_scale")
            assert codes is not None and scale is not None
            Int8Linear.turn(module, codes, scale, float(settings["x_scale"]), int(settings["x_zero"]))
        for name, tensor in held.items():
            _put(module, name, tensor, spot)
        for name in _NUMBERS:
            if name in settings:
                value = settings[name]
                setattr(module, name, tuple(value) if isinstance(value, list) else int(value))


def _difference(old: nn.Module, new: nn.Module, path: str) -> tuple[dict[str, Any], dict[str, Tensor | None]]:
    settings: dict[str, Any] = {}
    if type(old) is not type(new):
        if not isinstance(new, Int8Linear):
            raise InputError(
                f"module {path!r} became a {type(new).__qualname__}, which an artifact has no form for"
            )
        settings |= {"x_scale": new.x_scale, "x_zero": new.x_zero}
    for name in _NUMBERS:
        if getattr(old, name, None) != (value := getattr(new, name, None)):
            settings[name] = list(value) if isinstance(value, tuple) else value
    before, after = _held(old), _held(new)
    tensors: dict[str, Tensor | None] = {
        name: tensor for name, tensor in after.items() if not _same(before.get(name), tensor)
    }
    if not isinstance(new, Int8Linear):
        tensors |= dict.fromkeys(name for name in before if name not in after)
    return settings, tensors


def _held(module: nn.Module) -> dict[str, Tensor]:
    found = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _same(old: Tensor | None, new: Tensor) -> bool:
    if old is None or old.shape != new.shape or old.dtype != new.dtype:
        return False
    return old is new or torch.equal(old, new)


def _put(module: nn.Module, name: str, tensor: Tensor | None, where: str) -> None:
    if name in module._parameters:
        module._parameters[name] = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
        return
    if name in module._buffers:
        module._buffers[name] = tensor
        return
    if tensor is None or not name.isidentifier() or hasattr(module, name):
        raise UnsafeArtifactError(f"{where} has no tensor {name!r:.80}")
    module.register_buffer(name, tensor)
