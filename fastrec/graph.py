"""The graph: an `fx.GraphModule` of ATen calls with constants as attributes, and small helpers to edit it.

Every graph takes flat tensors by position and returns a tuple of tensors; each node's `meta["val"]` holds a fake
tensor (or number) of its type and shape, in which the number of rows is symbolic.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.graph import CodeGen

__all__ = [
    "ORIGINS",
    "VIEWS",
    "add_constant",
    "ancestors",
    "constant",
    "copy_graph",
    "emit",
    "evaluate",
    "free_sizes",
    "is_call",
    "is_free",
    "is_random",
    "is_written",
    "normalise",
    "operator_name",
    "revalue",
    "share_constants",
    "sweep",
    "value",
]

aten = torch.ops.aten

ORIGINS = "origins"
"""Where `gm.meta` says of made constants, by name, where their rows come from: see `earlier`."""

_PADDED = (aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
_RECURRENT = (aten.gru.input, aten.lstm.input, aten.rnn_tanh.input, aten.rnn_relu.input)

VIEWS = frozenset(
    [
        "view",
        "reshape",
        "_unsafe_view",
        "flatten",
        "unflatten",
        "unsqueeze",
        "squeeze",
        "select",
        "slice",
        "alias",
        "detach",
        "transpose",
        "permute",
        "t",
        "expand",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "contiguous",
        "clone",
        "narrow",
    ]
)
"""Operators that only move elements of one tensor."""

# Checks that the exporter leaves behind; shapes and ids are checked in front of the graph.
_CHECKS = (
    "aten::_assert_async",
    "aten::_assert_scalar",
    "aten::_assert_tensor_metadata",
    "aten::sym_constrain_range",
    "aten::sym_constrain_range_for_size",
)
# Operators tagged as random that are not while their training flag or probability says so: its position.
_CALM = {
    "aten::dropout": 2,
    "aten::dropout_": 2,
    "aten::feature_dropout": 2,
    "aten::alpha_dropout": 2,
    "aten::native_dropout": 2,
    "aten::scaled_dot_product_attention": 4,
    "aten::rrelu": 3,
    "aten::gru": 6,
    "aten::lstm": 6,
    "aten::rnn_tanh": 6,
    "aten::rnn_relu": 6,
}


def copy_graph(gm: fx.GraphModule) -> fx.GraphModule:
    """A structural copy that shares every tensor with `gm`; values of nodes and `gm.meta` are kept."""
    graph = fx.Graph()
    output = graph.graph_copy(gm.graph, {})
    graph.output(output)
    made = fx.GraphModule(gm, graph)
    made.meta.update(gm.meta)
    return made


def constant(gm: fx.GraphModule, node: Any) -> Tensor | None:
    """The tensor of a constant node, None for anything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    found = operator.attrgetter(str(node.target))(gm)
    return found.detach() if isinstance(found, Tensor) else None


def add_constant(gm: fx.GraphModule, name: str, tensor: Tensor) -> fx.Node:
    """A new constant under a fresh name made from `name`, at the top of the graph."""
    stem = re.sub(r"\W+", "_", name).strip("_") or "constant"
    taken = {key.partition(".")[0] for key in gm.state_dict()} | set(vars(gm)) | set(dir(gm))
    fresh = (
        stem
        if stem not in taken
        else next(f"{stem}_{i}" for i in range(1, 1 << 30) if f"{stem}_{i}" not in taken)
    )
    gm.register_buffer(fresh, tensor.detach())
    with gm.graph.inserting_before(next(iter(gm.graph.nodes))):
        node = gm.graph.get_attr(fresh)
    node.meta["val"] = _fake_mode(gm).from_tensor(tensor.detach(), static_shapes=True)
    return node


def emit(
    gm: fx.GraphModule, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> fx.Node:
    """A call at the graph's current insertion point, its value worked out from those of its arguments."""
    node = gm.graph.call_function(target, args, dict(kwargs or {}))
    node.meta["val"] = evaluate(gm, node)
    return node


def evaluate(gm: fx.GraphModule, node: fx.Node) -> Any:
    """The fake value of a call, from those of its arguments."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: arg.meta["val"])
    if node.target in _RECURRENT:
        return _recurrent(args)
    if node.target in _PADDED and args[4:5] == ("same",):
        return _of_same_size(args)
    with _fake_mode(gm), torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]  # a node's target is called


def _recurrent(args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The values of a recurrence: its kernel, asked for them, would fix the number of rows."""
    x, state, *_ = args
    states = list(state) if isinstance(state, (list, tuple)) else [state]
    width = states[0].shape[-1] * (2 if args[7] else 1)
    return (x.new_empty(*x.shape[:-1], width), *(part.new_empty(part.shape) for part in states))


def _of_same_size(args: tuple[Any, ...]) -> Tensor:
    """The value of a convolution that keeps sizes: where it pads unevenly, its kernel would fix the number of rows."""
    x, weight, *_ = args
    places = weight.ndim - 2
    found: Tensor = x.new_empty(*x.shape[: -places - 1], weight.shape[0], *x.shape[-places:])
    return found


def free_sizes(gm: fx.GraphModule, example: Sequence[Tensor], axes: Sequence[int | None]) -> None:
    """Values of all nodes anew, with these dimensions of the inputs free, where some kernel has fixed them.

    Sizes that are equal in the example are one. A graph in which they cannot be free keeps the values it has.
    """
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    sizes = [
        node.meta["val"].shape[axis] for node, axis in zip(inputs, axes, strict=True) if axis is not None
    ]
    if not any(isinstance(size, torch.SymInt) and size.node.expr.is_number for size in sizes):
        return
    old = {node: node.meta["val"] for node in gm.graph.nodes if "val" in node.meta}
    try:
        revalue(gm, example, axes)
    except (RuntimeError, ValueError, TypeError):
        for node, value in old.items():
            node.meta["val"] = value


def revalue(gm: fx.GraphModule, example: Sequence[Tensor], axes: Sequence[int | None]) -> None:
    """The value of every node anew: the dimensions of inputs at `axes` are free, and those that are equal in the example are one."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    for node, tensor, axis in zip(inputs, example, axes, strict=True):
        free = [DimDynamic.DUCK if k == axis else DimDynamic.STATIC for k in range(tensor.ndim)]
        context: Any = StatelessSymbolicContext(dynamic_sizes=free)
        node.meta["val"] = mode.from_tensor(tensor, symbolic_context=context)
    for node in gm.graph.nodes:
        if node.op == "get_attr" and (held := constant(gm, node)) is not None:
            node.meta["val"] = mode.from_tensor(held, static_shapes=True)
    for node in gm.graph.nodes:
        if node.op == "call_function":
            node.meta["val"] = evaluate(gm, node)


def ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The calls among these nodes and all that they come from."""
    found: set[fx.Node] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node not in found and node.op == "call_function":
            found.add(node)
            left.extend(node.all_input_nodes)
    return found


def is_free(node: fx.Node) -> bool:
    """Whether some size of the node's value is free: it is not that of one request."""
    found = node.meta.get("val")
    parts = found if isinstance(found, (tuple, list)) else (found,)
    return any(
        isinstance(one, torch.SymInt)
        or (isinstance(one, Tensor) and any(isinstance(size, torch.SymInt) for size in one.shape))
        for one in parts
    )


def is_call(node: Any, *targets: Any) -> bool:
    """Whether `node` calls one of `targets`."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def value(node: fx.Node) -> Tensor:
    """The fake tensor that stands for the node's result."""
    found = node.meta["val"]
    assert isinstance(found, Tensor), f"{node.name} is not a tensor"
    return found


def operator_name(node: fx.Node) -> str:
    """The name of the operator a node calls, without namespace and overload: "embedding"; nothing if it calls none."""
    if node.op != "call_function":
        return ""
    if isinstance(node.target, OpOverload):
        return str(node.target._schema.name).rpartition("::")[2]
    return str(getattr(node.target, "__name__", ""))


def is_random(node: fx.Node) -> bool:
    """Whether the node draws random numbers as it is called."""
    target = node.target
    if not isinstance(target, OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    place = _CALM.get(target._schema.name)
    if place is None:
        return True
    argument = target._schema.arguments[place]
    given = (
        node.args[place] if len(node.args) > place else node.kwargs.get(argument.name, argument.default_value)
    )
    return bool(given)


def is_written(node: fx.Node) -> bool:
    """Whether the node writes to one of its arguments."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def share_constants(gm: fx.GraphModule, home: fx.GraphModule) -> None:
    """Lets `gm` hold the very tensors of `home` where its own are equal to them: two forms of a graph, one memory."""
    held: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
    for tensor in (*home.buffers(), *home.parameters()):
        held.setdefault((tensor.shape, tensor.dtype), []).append(tensor)
    for _, owner, name in list(_attributes(gm)):
        tensor = getattr(owner, name)
        for other in held.get((tensor.shape, tensor.dtype), []):
            if other is not tensor and name in owner._buffers and torch.equal(other, tensor):
                owner._buffers[name] = other.detach()
                break


def sweep(gm: fx.GraphModule) -> None:
    """Removes nodes without effect and tensors without reader, then checks and compiles the graph."""
    gm.graph.eliminate_dead_code(_has_effect)
    for node in list(gm.graph.nodes):
        if node.op == "get_attr" and not node.users:
            gm.graph.erase_node(node)
    used = {str(node.target) for node in gm.graph.nodes if node.op in ("get_attr", "call_module")}
    for path, owner, name in list(_attributes(gm)):
        if path not in used:
            delattr(owner, name)
    if ORIGINS in gm.meta:
        # The name may be another constant's next.
        gm.meta[ORIGINS] = {name: origin for name, origin in gm.meta[ORIGINS].items() if name in used}
    gm.delete_all_unused_submodules()
    gm.graph.lint()
    gm.recompile()


def _has_effect(node: fx.Node) -> bool:
    """Whether the node matters without a reader: attention without dropout and recurrences in evaluation do not."""
    if node.is_impure() and isinstance(node.target, OpOverload):
        return is_written(node) or is_random(node)
    return bool(node.is_impure())


def normalise(gm: fx.GraphModule) -> fx.GraphModule:
    """An exported module as a plain graph: flat call, tuple of tensors, no checks, every value known."""
    graph = gm.graph
    graph.set_codegen(CodeGen())
    output = graph.output_node()
    leaves = output.args[0]
    output.args = (tuple(leaves) if isinstance(leaves, (tuple, list)) else (leaves,),)
    for node in list(graph.nodes):
        target = node.target
        if isinstance(target, OpOverload) and target._schema.name in _CHECKS:
            node.replace_all_uses_with(None)
            graph.erase_node(node)
        elif target is torch.ops.higher_order.wrap_with_set_grad_enabled:
            _inline(gm, node)
        elif is_call(node, aten._native_batch_norm_legit_no_training.default):
            _plain_batch_norm(gm, node)
        elif is_call(node, aten._unsafe_view.default):
            node.target = aten.reshape.default
    made = fx.GraphModule(gm, graph)
    for node in made.graph.nodes:
        if node.op == "get_attr" and "val" not in node.meta:
            tensor = constant(made, node)
            if tensor is not None:
                node.meta["val"] = _fake_mode(made).from_tensor(tensor, static_shapes=True)
        elif node.op == "call_function" and "val" not in node.meta:
            node.meta["val"] = evaluate(made, node)
    sweep(made)
    return made


def _inline(gm: fx.GraphModule, node: fx.Node) -> None:
    """A block that only switches gradients, as part of the graph: it is never run with them."""
    block = operator.attrgetter(str(node.args[1].target))(gm)  # type: ignore[union-attr]  # an argument of a node is of any type
    copies: dict[fx.Node, Any] = {}
    arguments = iter(node.args[2:])
    with gm.graph.inserting_before(node):
        for inner in block.graph.nodes:
            if inner.op == "placeholder":
                copies[inner] = next(arguments)
            elif inner.op != "output":
                copies[inner] = gm.graph.node_copy(inner, lambda old: copies[old])
    results = fx.map_arg(block.graph.output_node().args[0], lambda old: copies[old])
    for user in list(node.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(results[user.args[1]])
            gm.graph.erase_node(user)
    gm.graph.erase_node(node)


def _plain_batch_norm(gm: fx.GraphModule, node: fx.Node) -> None:
    x, weight, bias, mean, variance, momentum, epsilon = node.args
    with gm.graph.inserting_before(node):
        plain = gm.graph.call_function(
            aten.batch_norm.default, (x, weight, bias, mean, variance, False, momentum, epsilon, False)
        )
    for user in list(node.users):
        if user.target is operator.getitem and user.args[1] == 0:
            plain.meta.update(user.meta)
            user.replace_all_uses_with(plain)
        if not user.users:
            gm.graph.erase_node(user)


def _attributes(gm: fx.GraphModule) -> Iterator[tuple[str, torch.nn.Module, str]]:
    """Every tensor attribute: its path, the module that holds it, and its name there."""
    for prefix, module in gm.named_modules():
        names = [*module._parameters, *module._buffers]
        names += [name for name, held in vars(module).items() if isinstance(held, Tensor)]
        for name in names:
            yield f"{prefix}.{name}" if prefix else name, module, name


def _fake_mode(gm: fx.GraphModule) -> FakeTensorMode:
    """The mode that the values of this graph live in."""
    for node in gm.graph.nodes:
        found = node.meta.get("val")
        if isinstance(found, FakeTensor):
            return found.fake_mode
    return FakeTensorMode()
