"""What torch-pruning's own tracing makes of the zoo: `python -m benchmarks.dependency_graphs`.

For each linear map of more than one output, its group for unit 0 is asked for and cut, in at most `LIMIT` seconds, and the
answers are compared with those of the model whose columns of that unit are zero, where fastrec found these columns.
"""

from __future__ import annotations

import signal
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch_pruning
from torch import nn

from fastrec.program import Program
from fastrec.techniques.pruning.modules import find_units, replace_weights
from tests.zoo import ZOO, Entry, make

LIMIT = 20


class _TooLong(BaseException):
    pass


def _stop(*_: object) -> None:
    raise _TooLong


def program_of(entry: Entry) -> Program:
    """A fresh model of the zoo with a batch of eight rows."""
    model = make(entry)
    batch = entry.batch(8, torch.Generator().manual_seed(0))
    return Program.read(model if entry.entry == "forward" else getattr(model, entry.entry), batch)


def cut(program: Program, path: str) -> str:
    """What stopped the cut of unit 0, or nothing; the program's model is cut."""
    args, kwargs = program.call_of(program.batch)
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(LIMIT)
    try:
        graph = torch_pruning.DependencyGraph().build_dependency(
            program.model, example_inputs=args, forward_fn=lambda *_: program.function(*args, **kwargs)
        )
        module = program.model.get_submodule(path)
        graph.get_pruning_group(module, torch_pruning.prune_linear_out_channels, [0]).prune()
    except _TooLong:
        return f"no group after {LIMIT} seconds"
    except Exception as error:
        return f"raises: {type(error).__name__}"
    finally:
        signal.alarm(0)
    return ""


def judged(entry: Entry) -> Iterator[tuple[str, bool, str]]:
    """For each linear map: its path, whether fastrec cuts it, and what torch-pruning's cut of it does."""
    before = program_of(entry)
    groups = {site: group for group in find_units(before)[0] for site in (group.site, *group.coupled)}
    for path, linear in before.model.named_modules():
        if not isinstance(linear, nn.Linear) or linear.out_features < 2:
            continue
        program = program_of(entry)
        batch = program.flat(program.batch)
        right = program.answers(batch)
        if path in groups:
            masked: Any = before.draft()
            for reader, columns in groups[path].readers:
                weight = masked.get_submodule(reader).weight.detach().clone()
                weight[:, columns[0]] = 0
                replace_weights(masked, {reader: (weight, masked.get_submodule(reader).bias)})
            right = before.with_model(masked).answers(batch)
        found = cut(program, path)
        if not found:
            try:
                got = program.answers(batch)
            except Exception as error:
                found = f"the cut model fails: {type(error).__name__}"
            else:
                shapes = [x.shape for x in got] == [x.shape for x in right]
                same = shapes and all(map(torch.allclose, got, right, [1e-4] * len(got), [1e-5] * len(got)))
                wrong = "answers otherwise than with the unit masked" if path in groups else "runs"
                found = "right" if same else wrong if shapes else "the answer's shape changes"
        yield path, path in groups, found


def main() -> None:
    """Prints what becomes of each map, and how often each outcome was seen."""
    warnings.simplefilter("ignore")
    outcomes: Counter[tuple[bool, str]] = Counter()
    for entry in ZOO:
        for path, ours, found in judged(entry):
            outcomes[ours, found.split(":")[0]] += 1
            print(f"{entry.name:14} {path:34} {'cut by fastrec' if ours else 'left':15} {found}", flush=True)
    for (ours, found), times in outcomes.most_common():
        print(f"{times:3} {'cut by fastrec' if ours else 'left':15} {found}")


if __name__ == "__main__":
    main()
