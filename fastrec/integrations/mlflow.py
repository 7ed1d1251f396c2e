"""Compressed models in MLflow: what was measured, what was done and the artifact, in a run."""

from __future__ import annotations

import copy
import re
import tempfile
from pathlib import Path

from ..compressed import CompressedModel
from ..errors import InputError
from ..packages import package
from ..render import write_html
from ..report import Report
from ..version import VERSION

__all__ = ["log", "metrics", "params"]

# The longest value of a parameter that MLflow keeps whole.
_LONGEST = 6000


def log(fast: CompressedModel, name: str = "fastrec") -> str:
    """Logs a compressed model into the active run, and gives the URI of its artifact.

    All is under `name`: the `metrics` and `params` of its report, and as artifacts the folder that `save` writes (`model`), `report.json`
    and `report.html`. Without an active run MLflow begins one. What is logged is loaded again by
    `fastrec.load(mlflow.artifacts.download_artifacts(uri))`.

    Raises `PackageMissing` without mlflow or what a page needs, and whatever `save` raises, before anything is logged. MLflow raises
    where the run has other parameters under this name already. Cost: that of `save`, and the upload.
    """
    mlflow = package("mlflow", "mlflow", "integrations.mlflow")
    measured, done = metrics(fast.report, name), params(fast.report, name)
    with tempfile.TemporaryDirectory() as folder:
        # Of a copy: where `fast` itself is saved is what its pickles name, and this folder goes.
        copy.copy(fast).save(Path(folder, "model"))
        write_html(fast.report, Path(folder, "report.html"))
        Path(folder, "report.json").write_text(fast.report.to_json(), encoding="utf-8")
        mlflow.log_params(done)
        mlflow.log_metrics(measured)
        mlflow.log_artifacts(folder, name)
    return f"runs:/{mlflow.active_run().info.run_id}/{name}/model"


def metrics(report: Report, name: str = "fastrec") -> dict[str, float]:
    """The numbers of a report by the names that MLflow has for them, `{name}/{what}/{of which}`.

    By numbers of rows: `speedup`, the ends `speedup_low` and `speedup_high` of its 95 % interval, `p50_ms` and `p95_ms`, and those of the original with `_before`. By
    metric of quality, where rows were labelled: `before`, `after`, `loss` and, where it has one, its bound `loss_upper`. `bytes` are
    those of tensors `before` and `after`, what sessions hold beyond them, and the tables where a budget bounds them.

    Raises `InputError` where two metrics would have one name: signs other than letters, digits, `_` and `-` become `_`, and `@` `_at_`.
    """
    found: dict[str, float] = {}
    for size in report.sizes:
        found |= {
            f"speedup/{size.rows}": size.speedup.value,
            f"speedup_low/{size.rows}": size.speedup.low,
            f"speedup_high/{size.rows}": size.speedup.high,
            f"p50_ms/{size.rows}": size.after.p50 * 1e3,
            f"p95_ms/{size.rows}": size.after.p95 * 1e3,
            f"p50_ms_before/{size.rows}": size.before.p50 * 1e3,
            f"p95_ms_before/{size.rows}": size.before.p95 * 1e3,
        }
    for one in report.accuracy:
        of = re.sub(r"[^\w-]", "_", one.metric.replace("@", "_at_"))
        if f"loss/{of}" in found:
            raise InputError(f"MLflow takes no metric {one.metric!r:.80}: as {of!r:.80} it is another's name")
        found |= {f"before/{of}": one.before, f"after/{of}": one.after, f"loss/{of}": one.value}
        if one.upper is not None:
            found[f"loss_upper/{of}"] = one.upper
    memory = report.memory
    found |= {
        "bytes/before": memory.before_bytes,
        "bytes/after": memory.after_bytes,
        "bytes/sessions": memory.session_bytes,
    }
    if report.tables is not None:
        found["bytes/tables"] = report.tables.bytes
    return {f"{name}/{key}": value for key, value in found.items()}


def params(report: Report, name: str = "fastrec") -> dict[str, str]:
    """`{name}/status`, `version`, `techniques` and `recipe`, as JSON; one that is longer than MLflow keeps is in `report.json` alone."""
    found = {
        "status": report.status,
        "version": VERSION,
        "techniques": ", ".join(one.name for one in report.recipe.techniques) or "none",
    }
    recipe = report.recipe.to_json()
    if len(recipe) <= _LONGEST:
        found["recipe"] = recipe
    return {f"{name}/{key}": value for key, value in found.items()}
