"""Trials in a file: what was ended goes on, and what does not belong is refused."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastrec.backends import Eager
from fastrec.budget import Budget
from fastrec.errors import InputError
from fastrec.measure import evaluator
from fastrec.program import Program
from fastrec.recipe import Recipe
from fastrec.search.order import search
from fastrec.search.resume import Recorded, fingerprint
from fastrec.techniques import Fuse
from fastrec.tried import Tried

from .test_order import LADDERS, LINEARS, PRUNE, START, TABLES, Model, never

OF = {"model": "a", "budget": "b"}
LATER = Recipe((Fuse(), LINEARS[0]))


def model() -> Model:
    speed = dict(zip([*PRUNE, *TABLES, *LINEARS], (1.1, 1.2, 1.3, 1.05, 1.2, 1.5), strict=True))
    return Model(speed, dict(zip([*PRUNE, *TABLES, *LINEARS], (0.1, 0.4, 1.2, 0.1, 0.3, 0.5), strict=True)))


KILLED = """
import os, signal, sys
from pathlib import Path
from fastrec.search.resume import Recorded
from fastrec.search.order import search
from tests.search.test_resume import LADDERS, OF, START, model, never
formula, log, after = model(), Path(sys.argv[2]), int(sys.argv[3])
def trial(recipe, best):
    with log.open("a") as file:
        file.write("x")
    if len(formula.order) == after:
        os.kill(os.getpid(), signal.SIGKILL)
    return formula(recipe, best)
search(START, LADDERS, Recorded(Path(sys.argv[1]), OF, trial), never)
"""


@pytest.mark.parametrize("after", [1, 5, 9])
def test_a_killed_search_goes_on_where_it_was_with_one_trial_repeated_at_most(
    after: int, tmp_path: Path
) -> None:
    whole, straight = model(), search(START, LADDERS, model(), never)
    search(START, LADDERS, whole, never)
    path, log = tmp_path / "trials.jsonl", tmp_path / "log"
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(log), str(after)],
        cwd=Path(__file__).parent.parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    rest = model()
    assert search(START, LADDERS, Recorded(path, OF, rest), never) == straight
    assert len(log.read_text()) + len(rest.order) <= len(whole.order) + 1
    # Once more nothing is left to try.
    again = model()
    assert search(START, LADDERS, Recorded(path, OF, again), never) == straight
    assert not again.order


def test_a_line_that_was_cut_off_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    first = Recorded(path, OF, model())
    seen = first(LATER, START)
    text = path.read_text()
    path.write_text(text[:-20])
    formula = model()
    assert Recorded(path, OF, formula)(LATER, START) == seen
    assert formula.order == [LATER]
    assert path.read_text() == text


def test_trials_of_another_search_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    Recorded(path, OF, model())
    with pytest.raises(InputError, match=r"another search \(budget differ\)"):
        Recorded(path, {**OF, "budget": "c"}, model())
    kept = path.read_text()
    path.write_text("hello\n")
    with pytest.raises(InputError, match="line 1 is no JSON"):
        Recorded(path, OF, model())
    path.write_text('{"schema": 9}\n')
    with pytest.raises(InputError, match="no file of trials"):
        Recorded(path, OF, model())
    path.write_text(kept + '{"key": "a", "tried": {"recipe": 3}}\n')
    with pytest.raises(InputError, match="recipe"):
        Recorded(path, OF, model())
    with pytest.raises(InputError, match="cannot be written"):
        Recorded(tmp_path / "no" / "folder.jsonl", OF, model())
    with pytest.raises(InputError, match="cannot be read"):
        Recorded(tmp_path, OF, model())


def test_the_best_it_is_compared_with_is_part_of_a_trial(tmp_path: Path) -> None:
    formula = model()
    recorded = Recorded(tmp_path / "trials.jsonl", OF, formula)
    recorded(LATER, START)
    recorded(LATER, Recipe((Fuse(), TABLES[0])))
    assert len(formula.order) == 2
    assert isinstance(recorded(LATER, START), Tried) and len(formula.order) == 2


def test_what_trials_depend_on_is_in_the_fingerprint() -> None:
    layer, batch = torch.nn.Linear(3, 1), torch.ones(4, 3)
    program = Program.read(layer, batch)
    evaluate = evaluator([batch], [0, 1, 0, 1])
    given = (program, [[batch]], evaluate, Budget({"auc": 0.1}), (Eager(),), (1, 8))
    before = fingerprint(*given)
    assert fingerprint(*given) == before
    with torch.no_grad():
        layer.weight[0, 0] += 1
    assert {name for name, value in fingerprint(*given).items() if value != before[name]} == {"model"}
    others = (program, [[batch + 1]], evaluator([batch], [1, 1, 0, 1]), Budget({"auc": 0.2}), (), (1, 9))
    changed = fingerprint(*others)
    assert {name for name in before if changed[name] != before[name]} == set(before) - {"machine"}
