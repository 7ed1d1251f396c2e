"""A model repository of Triton Inference Server for its backend of ONNX Runtime: a folder of the model, and what it takes."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import torch

from ..artifact import Contents
from ..artifact.replacing import beside
from ..errors import ArtifactError, InputError
from .graph import ROWS
from .onnx_file import INSIDE, Exported, written

__all__ = ["config", "export_triton"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_TYPES = {
    torch.bool: "BOOL", torch.uint8: "UINT8", torch.int8: "INT8", torch.int16: "INT16", torch.int32: "INT32",
    torch.int64: "INT64", torch.float16: "FP16", torch.bfloat16: "BF16", torch.float32: "FP32", torch.float64: "FP64",
}  # fmt: skip


def export_triton(
    contents: Contents,
    repository: str | os.PathLike[str],
    *,
    name: str = "model",
    version: int = 1,
    max_batch_size: int = 1024,
    everywhere: bool = True,
) -> Exported:
    """Writes what serves into a model repository; see `CompressedModel.export_triton`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"name takes letters, digits, '_', '-' and '.', got {name!r:.80}")
    for what, number in (("version", version), ("max_batch_size", max_batch_size)):
        if type(number) is not int or not 0 < number < 2**31:
            raise InputError(f"{what} takes a whole number above 0, got {number!r:.80}")
    target = Path(os.path.abspath(os.fspath(repository))) / name
    place = target / str(version)
    if place.exists():
        raise ArtifactError(f"{place} is there already: give another version or name", path=str(place))
    target.parent.mkdir(parents=True, exist_ok=True)
    with beside(target) as fresh:
        (fresh / str(version)).mkdir()
        made = written(contents, fresh / str(version) / "model.onnx", inside=INSIDE, everywhere=everywhere)
        text = config(made, name, max_batch_size)
        page = target / "config.pbtxt"
        if target.exists():
            if not page.is_file() or page.read_text() != text:
                raise ArtifactError(
                    f"{target} holds a model that takes other inputs: give another name", path=str(page)
                )
            os.rename(fresh / str(version), place)
        else:
            (fresh / "config.pbtxt").write_text(text)
            os.rename(fresh, target)
    files = tuple(str(place / Path(file).name) for file in made.files)
    return replace(made, path=str(place / "model.onnx"), files=(str(page), *files))


def config(made: Exported, name: str, max_batch_size: int) -> str:
    """The text of `config.pbtxt`.

    Where every input and output has the rows in front, and rows of different callers may be put together, Triton counts the batch by
    itself (`max_batch_size` above 0, that dimension left out of `dims`) and joins calls. Otherwise the dimensions are as in the
    file, -1 where they are free, and calls are not joined: rows of one call belong together.
    """
    batched = made.separate and all(
        port.shape[:1] == (ROWS,) and not any(isinstance(n, str) for n in port.shape[1:])
        for port in (*made.inputs, *made.outputs)
    )
    given = [port.name for port in made.inputs if port.request is True]
    lines = [
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {max_batch_size if batched else 0}",
        *([f"# one row for all rows of a call: {', '.join(map(_quoted, given))}"] if given else []),
    ]
    for kind, ports in (("input", made.inputs), ("output", made.outputs)):
        for port in ports:
            lines += [
                f"{kind} {{",
                f"  name: {_quoted(port.name)}",
                f"  data_type: TYPE_{_TYPES[port.dtype]}",
            ]
            sizes = [n if isinstance(n, int) else -1 for n in port.shape[1 if batched else 0 :]]
            lines.append(f"  dims: [ {', '.join(map(str, sizes)) or 1} ]")
            if not sizes:
                # Triton knows no tensor without a dimension of its own.
                lines.append("  reshape { shape: [ ] }")
            lines.append("}")
    lines += ["instance_group { kind: KIND_CPU count: 1 }"]
    if batched:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A string of the text format of protobuf: what is not plain ASCII in octal bytes."""
    return (
        '"'
        + "".join(
            chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}"
            for byte in text.encode()
        )
        + '"'
    )
