"""Residual streams in fewer columns, which layer norms stay layer norms of.

    z = P^T x (r,),   P = V H^T + 1_d 1_r^T / sqrt(d r)  (d, r)      V (d, r-1): the first eigenvectors of E n n^T at right angles to 1_d
                                                                     H (r, r-1): orthonormal columns at right angles to 1_r
    x ~ P z,          n(x) ~ sqrt(d / r) P LayerNorm(z; eps d / r)

P has orthonormal columns and takes 1_d to 1_r: the mean of x lies in that of z, which the layer norm of z takes off as before, and
what is left has the same length. At r = d both are equations. Source: Ashkboos et al., "SliceGPT: Compress Large Language Models by
Deleting Rows and Columns", 2024, who fold the mean away, put an RMS norm in the layer norm's place, and have a basis for each block and
a product between the two on each skip connection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import add_constant, constant, evaluate, is_call
from ..quantization.layers import bias_of
from .rewrite import constant_bytes
from .streams import RESIZED, Reader, Stream

__all__ = ["basis_of_stream", "epsilon_of", "turn"]

aten = torch.ops.aten


def basis_of_stream(rows: Sequence[Tensor], epsilons: Sequence[float], rank: int) -> tuple[Tensor, float]:
    """P (d, r) for rows (n, d) that each norm of a stream reads, and the share of the energy of n that it keeps; float64."""
    width = rows[0].shape[1]
    second = torch.zeros(width, width, dtype=torch.float64)
    for x, epsilon in zip(rows, epsilons, strict=True):
        centred = x.double() - x.double().mean(1, keepdim=True)
        n = centred / (centred.square().mean(1, keepdim=True) + epsilon).sqrt()
        second += n.t() @ n / max(len(n), 1)
    total = float(second.trace())
    # The vector of ones is the last, whatever the rank of the rows.
    energies, vectors = torch.linalg.eigh(second - (1 + total) / width)
    kept = vectors.flip(1)[:, : rank - 1]
    share = float(energies.flip(0)[: rank - 1].clamp(min=0).sum()) / total if total else 1.0
    return kept @ _off_ones(rank).t() + 1 / math.sqrt(width * rank), share


def _off_ones(size: int) -> Tensor:
    """H, of Helmert (r, r-1): orthonormal columns at right angles to the vector of ones."""
    made = torch.zeros(size, size - 1, dtype=torch.float64)
    for k in range(1, size):
        made[:k, k - 1] = 1 / math.sqrt(k * (k + 1))
        made[k, k - 1] = -k / math.sqrt(k * (k + 1))
    return made


def epsilon_of(norm: fx.Node) -> float:
    """What a layer norm adds to the variance."""
    return float(norm.args[4]) if len(norm.args) > 4 else 1e-5  # type: ignore[arg-type]  # an argument of a node is of any type


def turn(gm: fx.GraphModule, stream: Stream, basis: Tensor) -> tuple[set[str], int]:
    """Puts a stream in these columns P (d, r); edits `gm`. The names and the bytes of what was made."""
    names: set[str] = set()
    made = 0

    def new(stem: str, tensor: Tensor) -> fx.Node:
        nonlocal made
        node = add_constant(gm, stem, tensor.float().contiguous())
        names.add(str(node.target))
        made += constant_bytes(gm, node)
        return node

    changed = {*stream.nodes}
    for node in stream.writers:
        weight, bias = constant(gm, node.args[1]), constant(gm, bias_of(node))
        assert weight is not None
        args: list[Any] = [node.args[0], new(f"{node.name}_turned", basis.t() @ weight.double())]
        if bias is not None:
            args.append(new(f"{node.name}_turned_bias", basis.t() @ bias.double()))
        node.args, node.kwargs = tuple(args), {}
        changed.add(node)
    for node in stream.entries:
        users = [user for user in node.users if user in changed or user in stream.norms]
        into = new(f"{node.name}_entry", basis.t())
        with gm.graph.inserting_after(node):
            turned = gm.graph.call_function(aten.linear.default, (node, into))
        turned.meta["val"] = evaluate(gm, turned)
        for user in users:
            user.replace_input_with(node, turned)
    for node in list(gm.graph.nodes):
        if node in changed:
            _evaluate(gm, node, basis)
    for reader in (*stream.readers, stream.plain):
        _read(gm, reader, basis, new)
    return names, made


def _evaluate(gm: fx.GraphModule, node: fx.Node, basis: Tensor) -> None:
    """The value of a node whose columns changed, and their number where it names it."""
    if is_call(node, *RESIZED):
        sizes: Any = node.args[1]
        node.args = (node.args[0], [*sizes[:-1], -1 if sizes[-1] == -1 else basis.shape[1]], *node.args[2:])
    node.meta["val"] = evaluate(gm, node)


def _read(gm: fx.GraphModule, reader: Reader, basis: Tensor, new: Callable[[str, Tensor], fx.Node]) -> None:
    """A norm of the turned columns, and the maps behind it with its scale and shift in them; or those that read the sums."""
    norm, (width, rank) = reader.norm, basis.shape
    back, shifts = basis, None
    if norm is not None:
        scales, shifts = (constant(gm, arg) for arg in (*norm.args[2:4], None, None)[:2])
        back = math.sqrt(width / rank) * back
        back = back if scales is None else scales.double().unsqueeze(1) * back
        norm.args = (norm.args[0], [rank], None, None, epsilon_of(norm) * width / rank, *norm.args[5:])
        for node in (norm, *reader.moves):
            _evaluate(gm, node, basis)
    for node in reader.maps:
        weight, bias = constant(gm, node.args[1]), constant(gm, bias_of(node))
        assert weight is not None
        args: list[Any] = [node.args[0], new(f"{node.name}_turned", weight.double() @ back)]
        if shifts is not None:
            shift = weight.double() @ shifts.double()
            args.append(new(f"{node.name}_shift", shift if bias is None else bias.double() + shift))
        elif bias is not None:
            args.append(bias_of(node))
        node.args, node.kwargs = tuple(args), {}
    turned: dict[fx.Node, fx.Node] = {}
    for user, source in reader.others:
        if source not in turned:
            into: list[Any] = [source, new(f"{source.name}_back", back)]
            if shifts is not None:
                into.append(new(f"{source.name}_back_shift", shifts.double()))
            with gm.graph.inserting_after(source):
                turned[source] = gm.graph.call_function(aten.linear.default, tuple(into))
            turned[source].meta["val"] = evaluate(gm, turned[source])
        user.replace_input_with(source, turned[source])
