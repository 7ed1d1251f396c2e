"""Where in the caller's own code something stands: the path of a module, and the line that called."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import fx, nn

from .graph import operator_name

__all__ = ["called", "line_of", "named", "place_of", "placed", "places"]

_OURS = Path(__file__).parent
_TORCH = Path(torch.__file__).parent
_FRAME = re.compile(r'^\s*File "([^"\n]+)", line (\d+)', re.MULTILINE)
# What capture puts in front of the paths of a model's own modules.
_WRAPPED = re.compile(r"^(program\.)?model(\.|$)")
_NEAR = 32  # nodes in front of one that a rewrite has made, among which its place is looked for

Line = tuple[str, int]


def place_of(node: fx.Node) -> str:
    """The module that a call was made in, by its path, and the line, as "tower.mlp.0, ranker.py:41"; nothing where neither is known.

    What a rewrite has made is "near" the closest call in front of it.
    """
    for found in islice(_in_front(node), _NEAR):
        stack, trace = found.meta.get("nn_module_stack"), found.meta.get("stack_trace")
        module = _WRAPPED.sub("", str([*stack.values()][-1][0])) if stack else ""
        said = ", ".join(filter(None, (module, _last(_frames_in(trace or "")))))
        if said:
            return said if found is node else f"near {said}"
    return ""


def named(node: fx.Node) -> str:
    """A node and its place, as reasons say it: "linear_3 (tower.mlp.0, ranker.py:41)"."""
    return placed(node.name, place_of(node))


def called(node: fx.Node) -> str:
    """The operator that a node calls and its place: "linear (tower.mlp.0, ranker.py:41)"; nothing if it calls none."""
    return placed(name, place_of(node)) if (name := operator_name(node)) else ""


def placed(name: str, place: str) -> str:
    """A name with its place, where that is known."""
    return f"{name} ({place})" if place else name


def places(*models: nn.Module) -> Callable[[str], str]:
    """Gives the place of a site, or of the first of several, by the first of these models that is a graph and has it."""
    nodes = {
        node.name: node
        for model in reversed(models)
        if isinstance(model, fx.GraphModule)
        for node in model.graph.nodes
        if node.op == "call_function"
    }

    def place(site: str) -> str:
        node = nodes.get(site.partition(", ")[0])
        return "" if node is None else place_of(node)

    return place


def line_of(error: BaseException) -> str:
    """The line of the caller's code at which an error came up as it was read, as "ranker.py:41"; nothing where it is not known."""
    frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    # Of what torch reads without running it there is no frame: it tells the line in other ways.
    stack = getattr(error, "real_stack", None) or ()
    told = [(str(frame.filename), int(frame.lineno or 0)) for frame in stack]
    return _last(_read(frames)) or _last(_read(told) or told) or _last(_frames_in(str(error)))


def _in_front(node: fx.Node) -> Iterator[fx.Node]:
    """A node and the calls in front of it, the nearest first."""
    seen, left = {node}, [node]
    while left:
        node = left.pop(0)
        yield node
        for arg in node.all_input_nodes:
            if arg not in seen and arg.op == "call_function":
                seen.add(arg)
                left.append(arg)


def _frames_in(text: str) -> list[Line]:
    """The frames that a text shows, those behind ours."""
    frames = [(path, int(line)) for path, line in _FRAME.findall(text)]
    return _read(frames) or frames


def _read(frames: Sequence[Line]) -> list[Line]:
    """The frames behind the last one of ours, where a model is read."""
    ours = [place for place, (path, _) in enumerate(frames) if _inside(path, _OURS)]
    return list(frames[ours[-1] + 1 :]) if ours else []


def _last(frames: Sequence[Line]) -> str:
    """The last frame that is not torch's or ours, by its path from where Python imports."""
    for path, line in reversed(frames):
        if not (path.startswith("<") or _inside(path, _TORCH) or _inside(path, _OURS)):
            return f"{_short(Path(path))}:{line}"
    return ""


def _inside(path: str, folder: Path) -> bool:
    return Path(path).is_relative_to(folder)


def _short(path: Path) -> str:
    homes = [Path(home) for home in sys.path if home and path.is_relative_to(home)]
    return path.relative_to(max(homes, key=lambda home: len(home.parts))).as_posix() if homes else path.name
