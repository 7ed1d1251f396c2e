"""What an auditor would try: whether the same comes out again, and whether what is not allowed is refused."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from conversions import Part, scored
from torch import nn

import fastrec
from fastrec.artifact import check

Compressed = fastrec.CompressedModel


def same(one: nn.Module, other: nn.Module, part: Part, sizes: Sequence[int]) -> bool:
    """Whether both answer the same bits, so many rows a call."""
    few = tuple(x[:2000] for x in part)
    return all(torch.equal(scored(one, few, size), scored(other, few, size)) for size in sizes)


def repeated(
    fast: Compressed, compressed: Callable[[], Compressed], updated: Callable[[Path], str], folder: Path, part: Part
) -> dict[str, str]:  # fmt: skip
    """Whether the same comes out again: loaded, compressed anew, and made again by what the artifact says of itself."""
    again = compressed()
    first, second = ({size.rows: size.session for size in one.report.sizes} for one in (fast, again))
    alike = [rows for rows, session in first.items() if second.get(rows) == session]
    loaded = all(same(fast, fastrec.load(folder), part, [*first]) for _ in range(2))
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(folder, f"{scratch}/copy"))
        outcome, whole, made = updated(copy), _digests(folder), _digests(copy)
    equal = sum(made.get(name) == digest for name, digest in whole.items())
    where = f"at {' and '.join(map(str, alike)) or 'no'} rows, where the same session was the fastest"
    return {
        "loaded twice: the same bits": _yes(loaded),
        "compressed anew: the same recipe": _yes(again.recipe == fast.recipe),
        f"compressed anew: the same bits {where}": _yes(same(fast, again, part, alike)),
        "made again of its checkpoint, recipe and plan": f"{outcome}: {equal} of {len(whole)} files with the same digest",
    }  # fmt: skip


def damaged(folder: Path) -> str:
    """What becomes of a copy of an artifact in which one bit of a tensor is another."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(folder, f"{scratch}/copy"))
        held = bytearray((copy / "tensors.safetensors").read_bytes())
        held[-1] ^= 1
        (copy / "tensors.safetensors").write_bytes(held)
        return refused(lambda: fastrec.load(copy)).replace(f"{copy}/", "")


def unknown(fast: Compressed, part: Part) -> str:
    """What becomes of a row with an id that no table has."""
    ids, numbers, _ = (x[:3].clone() for x in part)
    ids[1, 0] = 1_000_000
    return refused(lambda: fast(ids, numbers))


def refused(call: Callable[[], object]) -> str:
    """The first words of the error that is raised, if one is."""
    try:
        call()
    except fastrec.FastrecError as error:
        return f"{type(error).__name__}: {str(error).partition('. ')[0]}"
    return "NOT REFUSED"


def _digests(folder: Path) -> dict[str, str]:
    """Those of what computes: graphs and tensors, and no reports or dates."""
    files = check(folder).files.items()
    return {name: file.sha256 for name, file in files if name.startswith(("graphs/", "tensors"))}


def _yes(held: bool) -> str:
    return "yes" if held else "NO"
