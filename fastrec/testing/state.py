"""What a call may not change: tensors and modes of the model, and random states."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["changed", "state_of"]


def state_of(model: nn.Module) -> dict[str, str]:
    """A digest of each tensor, each module's mode and each random state. One pass over the tensors."""
    found = {
        f"tensor {name!r}": _digest(tensor) for name, tensor in model.named_parameters(remove_duplicate=False)
    }
    found |= {
        f"tensor {name!r}": _digest(tensor) for name, tensor in model.named_buffers(remove_duplicate=False)
    }
    found |= {
        f"mode of {name or 'the model'!r}": str(module.training) for name, module in model.named_modules()
    }
    found["torch's random state"] = _digest(torch.get_rng_state())
    found["numpy's random state"] = str(hash(_hashable(np.random.get_state(legacy=False))))
    found["Python's random state"] = str(hash(random.getstate()))
    return found


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The names of what is not as it was."""
    return [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]


def _hashable(value: object) -> object:
    if isinstance(value, dict):
        return tuple((name, _hashable(one)) for name, one in value.items())
    return value.tobytes() if isinstance(value, np.ndarray) else value


def _digest(tensor: Tensor) -> str:
    plain = tensor.detach()
    if plain.layout != torch.strided or plain.device.type == "meta" or plain.is_quantized:
        return f"{plain.dtype} {tuple(plain.shape)} {id(tensor)}"
    data = plain.contiguous().reshape(-1).view(torch.uint8).numpy(force=True)
    return f"{plain.dtype} {tuple(plain.shape)} {hashlib.blake2b(data.data, digest_size=16).hexdigest()}"
