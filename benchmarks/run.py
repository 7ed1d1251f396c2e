"""`python -m benchmarks.run`: time fastrec and its peers on the standard cases.

    python -m benchmarks.run                                   # everything, one process per case
    python -m benchmarks.run --cases deepfm,din --sizes 1,100  # part of it
    python -m benchmarks.run --processes 10                    # for a claim: intervals over fresh processes
    python -m benchmarks.run --request                         # one request against N candidates in each call
    python -m benchmarks.run --int8                            # fastrec may round to int8, as peers of any precision do
    python -m benchmarks.run --bf16                            # fastrec may round what linear maps multiply to bfloat16

Each case runs in a process of its own with torch at one thread. In it every way to serve takes its turn, call by call,
on the same fresh inputs (see `turns.py`). Written after each case: `<machine>.json`, its table `<machine>.md` and, where matplotlib is
installed, its chart `<machine>.svg`; with `--request`, `--int8` and `--bf16`, those of `<machine>-request-int8` and so on. `--resume` keeps the cases a file already has.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fastrec.measure import machine

from .models import CASES
from .peers import BF16, FP32, PEERS
from .results import CaseResult, Results, merge
from .tables import chart, markdown
from .worker import measure_case

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when every case asked for was measured."""
    options = _parse(arguments)
    torch.set_num_threads(1)
    if options.worker is not None:
        return _work(options)
    options.out.mkdir(parents=True, exist_ok=True)
    kinds = [kind for kind in ("request", "int8", "bf16") if getattr(options, kind)]
    path = options.out / f"{'-'.join([machine().slug, *kinds])}.json"
    results = _read(path, options)
    missing = []
    for name in options.cases:
        if options.resume and name in results.cases:
            print(f"{name}: kept from {path.name}")
            continue
        start = time.perf_counter()
        runs = [run for i in range(options.processes) if (run := _in_process(options, name, i)) is not None]
        if not runs:
            missing.append(name)
            continue
        results = _read(path, options).with_case(merge(runs))
        _write(results, path)
        print(f"{name}: done in {time.perf_counter() - start:.0f} s, kept in {path}", flush=True)
    if results.cases:
        print(markdown(results))
    if missing:
        print(f"not measured: {', '.join(missing)}", file=sys.stderr)
    return 1 if missing else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--cases", type=_names(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--sizes", type=_sizes, help="numbers of rows; default: those of each case")
    parser.add_argument(
        "--request",
        action="store_true",
        help="each call scores one request: its features repeated for all candidates; fp32 peers unless said",
    )
    parser.add_argument(
        "--int8", action="store_true", help="fastrec may round to int8; all peers unless said"
    )
    parser.add_argument(
        "--bf16", action="store_true", help="fastrec may round to bfloat16; fp32 and bf16 peers unless said"
    )
    parser.add_argument("--peers", type=_names(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--processes", type=int, default=1, help="fresh processes per case (10 for a claim)")
    parser.add_argument("--seconds", type=float, default=8.0, help="timed seconds per case and size")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder to write to"
    )
    parser.add_argument("--resume", action="store_true", help="keep the cases that the file already has")
    parser.add_argument("--without-fastrec", action="store_true", help="the peers alone")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help="of the random ids")
    options = parser.parse_args(arguments)
    if options.processes < 1 or options.seconds <= 0:
        parser.error("--processes must be at least 1, --seconds above 0")
    able = [name for name, case in CASES.items() if case.request is not None or not options.request]
    options.cases = able if options.cases is None else options.cases
    if options.peers is None:
        if options.bf16 and not options.int8:
            options.peers = list(BF16)
        else:
            options.peers = list(FP32 if options.request and not options.int8 else PEERS)
    if refused := [name for name in options.cases if name not in able]:
        parser.error(f"--request: a call of {', '.join(refused)} is not one request; of {', '.join(able)}")
    return options


def _read(path: Path, options: argparse.Namespace) -> Results:
    return replace(Results.read(path), request=options.request, int8=options.int8, bf16=options.bf16)


def _in_process(options: argparse.Namespace, name: str, index: int) -> CaseResult | None:
    """One case in a fresh process: what a peer leaves behind, or brings down, stays there."""
    print(
        f"{name}" + (f", process {index + 1} of {options.processes}" if options.processes > 1 else ""),
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "case.json"
        command = [sys.executable, "-m", "benchmarks.run", "--worker", str(part), "--cases", name]
        command += ["--peers", ",".join(options.peers), "--seconds", str(options.seconds)]
        command += ["--seed", str(options.seed + index)]
        if options.sizes:
            command += ["--sizes", ",".join(map(str, options.sizes))]
        command += ["--without-fastrec"] if options.without_fastrec else []
        command += ["--request"] if options.request else []
        command += ["--int8"] if options.int8 else []
        command += ["--bf16"] if options.bf16 else []
        code = subprocess.run(command, check=False).returncode
        if code != 0 or not part.exists():
            print(f"{name}: its process ended with {code}", file=sys.stderr)
            return None
        return Results.read(part).cases[name]


def _work(options: argparse.Namespace) -> int:
    results = Results()
    for name in options.cases:
        case = CASES[name]
        result = measure_case(
            case,
            sizes=options.sizes or case.sizes,
            peers=options.peers,
            fastrec=not options.without_fastrec,
            seconds=options.seconds,
            seed=options.seed,
            say=lambda text: print(text, flush=True),
            request=options.request,
            int8=options.int8,
            bf16=options.bf16,
        )
        results = results.with_case(result)
    results.write(options.worker)
    return 0


def _write(results: Results, path: Path) -> None:
    results.write(path)
    path.with_suffix(".md").write_text(markdown(results))
    drawing = chart(results)
    if drawing is None:
        print("no chart: pip install matplotlib")
    else:
        path.with_suffix(".svg").write_text(drawing)


def _names(known: Iterable[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return names

    return parse


def _sizes(text: str) -> list[int]:
    sizes = sorted({int(part) for part in text.split(",")})
    if sizes[0] < 1:
        raise argparse.ArgumentTypeError("sizes are at least 1")
    return sizes


if __name__ == "__main__":
    sys.exit(main())
