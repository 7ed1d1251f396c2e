"""The commands and their options. What they do is in the modules beside, loaded when one is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..version import VERSION
from .outcome import run

__all__ = ["app"]

_CODES = "Exit codes: 0 all is well; 1 slower, other answers, or a budget that was missed; 2 a call that does not fit; 3 an unsafe or damaged artifact; 4 a fault of fastrec itself."

app = typer.Typer(
    name="fastrec",
    help=f"Makes trained recommenders answer faster, and says by how much. {_CODES}",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Folder = Annotated[Path, typer.Argument(help="The folder of a saved model.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")]
Sizes = Annotated[str | None, typer.Option(help="Numbers of rows, as 1,100.", show_default=False)]
Build = Annotated[
    str | None,
    typer.Option("--model", help="pkg.module:build, which gives the original.", show_default=False),
]
Seconds = Annotated[float, typer.Option(min=0.1, help="How long measuring may take, about.")]
Here = Annotated[
    bool,
    typer.Option("--here", help="8-bit products as this machine's processor takes them, not as any does."),
]


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"fastrec {VERSION}")
        raise typer.Exit


@app.callback()
def _fastrec(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="The version, and nothing else."),
    ] = False,
) -> None:
    pass


@app.command()
def compress(
    build: Annotated[
        str,
        typer.Argument(
            help="pkg.module:build, which gives (model, batch) or a dict of arguments of fastrec.compress.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to save into.", show_default=False)],
    budget: Annotated[
        list[str] | None, typer.Option(help="What may be lost, as auc=0.0002; may be repeated.")
    ] = None,
    segments: Annotated[
        list[str] | None, typer.Option(help="The same in each segment, as auc=0.002; may be repeated.")
    ] = None,
    limit_bytes: Annotated[
        int | None, typer.Option("--bytes", min=1, help="What the tables may take.")
    ] = None,
    p95_ms: Annotated[float | None, typer.Option(help="What the 95th percentile of a call may take.")] = None,
    minimize: Annotated[str | None, typer.Option(help="latency or bytes.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe as JSON.")] = None,
    resume: Annotated[Path | None, typer.Option(help="A file that keeps the trials of a search.")] = None,
    request_features: Annotated[
        str | None, typer.Option(help="What all rows of one call share, as user,history.")
    ] = None,
    batch_sizes: Sizes = None,
    backends: Annotated[
        str | None,
        typer.Option(help="Who may run it, as eager,onnxruntime; all that are installed if not given."),
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="How long it may take, about.")] = None,
    html: Annotated[Path | None, typer.Option(help="A file for the report as a page.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compress a model and save it. 1: a budget was missed, or nothing could be certified; the model is saved all the same."""
    _do(
        "compress", "compressing:compressed", json, debug,
        spec=build, out=out, budget=budget or (), segments=segments or (), limit_bytes=limit_bytes, p95_ms=p95_ms,
        minimize=minimize, recipe=recipe, resume=resume, request_features=request_features, batch_sizes=batch_sizes,
        backends=backends, seconds=seconds, page=html,
    )  # fmt: skip


@app.command()
def benchmark(
    folder: Folder,
    model: Build = None,
    batch_sizes: Sizes = None,
    seconds: Seconds = 10.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Time a saved model here, beside the original where that is given. 1: it is slower than the original."""
    _do(
        "benchmark", "timing:benchmarked", json, debug,
        folder=folder, model=model, batch_sizes=batch_sizes, seconds=seconds,
    )  # fmt: skip


@app.command()
def compare(
    a: Annotated[
        Path, typer.Argument(help="A folder of a saved model, or a report as JSON.", show_default=False)
    ],
    b: Annotated[Path, typer.Argument(help="Another one.", show_default=False)],
    batch_sizes: Sizes = None,
    seconds: Seconds = 10.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare two saved models call by call in turns, or two reports by their numbers. 1: the second is slower."""
    _do(
        "compare", "timing:compared_saved", json, debug,
        first=a, second=b, batch_sizes=batch_sizes, seconds=seconds,
    )  # fmt: skip


@app.command()
def inspect(folder: Folder, json: Json = False, debug: Debug = False) -> None:
    """Say what a folder holds: inputs, outputs, recipe, plan, files. It is checked, and nothing in it is run."""
    _do("inspect", "looking:inspected", json, debug, folder=folder)


@app.command()
def verify(folder: Folder, model: Build = None, json: Json = False, debug: Debug = False) -> None:
    """Check digests and contents, then answers against those that were recorded. 1: answers differ; 3: it is refused."""
    _do("verify", "looking:verified", json, debug, folder=folder, model=model)


@app.command()
def report(
    path: Annotated[
        Path, typer.Argument(help="A folder of a saved model, or a report as JSON.", show_default=False)
    ],
    html: Annotated[Path | None, typer.Option(help="A file for the report as a page.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As Markdown.")] = False,
    csv: Annotated[Path | None, typer.Option(help="A folder for its tables as CSV.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a report: in the terminal, as Markdown, as a page of HTML or as tables."""
    _do(
        "report", "looking:reported", json, debug,
        path=path, page=html, as_markdown=markdown, tables=csv,
    )  # fmt: skip


@app.command("export-onnx")
def export_onnx(
    folder: Folder,
    file: Annotated[Path, typer.Argument(help="The file to write, which ends in .onnx.", show_default=False)],
    here: Here = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a saved model as one ONNX file in standard operators, checked against it."""
    _do("export-onnx", "exporting:as_onnx", json, debug, folder=folder, file=file, everywhere=not here)


@app.command("export-triton")
def export_triton(
    folder: Folder,
    repository: Annotated[Path, typer.Argument(help="The model repository.", show_default=False)],
    name: Annotated[str, typer.Option(help="What the model is called there.")] = "model",
    version: Annotated[int, typer.Option(min=1, help="Its version.")] = 1,
    max_batch_size: Annotated[
        int, typer.Option(min=1, help="Rows of joined calls, where calls may be joined.")
    ] = 1024,
    here: Here = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a saved model into a model repository of Triton Inference Server."""
    _do(
        "export-triton", "exporting:as_triton", json, debug,
        folder=folder, repository=repository, name=name, version=version, max_batch_size=max_batch_size,
        everywhere=not here,
    )  # fmt: skip


def _do(command: str, work: str, as_json: bool, debug: bool, **arguments: Any) -> None:
    raise typer.Exit(run(command, work, as_json=as_json, debug=debug, **arguments))
