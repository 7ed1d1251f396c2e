"""Results as a Markdown table and as a bar chart."""

from __future__ import annotations

import io
from collections.abc import Iterator

from fastrec.measure import Latency, Ratio
from fastrec.wording import amount, clean, difference, duration, spans, times

from .peers import FP32, PEERS
from .results import ONCE, OURS, CaseResult, Cell, Results

__all__ = ["brief", "chart", "markdown"]

WAYS = (*PEERS, OURS, ONCE)
# What the request's speed-up is summed up over.
MEANT, MEANT_SIZES = ("deepfm", "dlrm", "dcnv2", "din", "sasrec", "two_tower"), (100, 500)

INTRODUCTION = (
    "Medians on one thread, fresh uniform ids on each call, turns taken call by call, each timed "
    "call right after an untimed one of the same way on another input; the fastest fp32 way in bold, 95 % "
    f"intervals in brackets. fp32 peers: {', '.join(FP32)}. The others round more coarsely, so their scores differ "
    "(below)."
)


INT8 = (
    f"{OURS} is allowed to round: tables to row-wise int8, linear maps to static int8, where that is faster than its exact "
    "plan. Weights here are random, so what it loses of a metric is not to be read off; scores differ as below."
)
BF16 = (
    f"{OURS} is allowed to round what its linear maps multiply to bfloat16, where that is faster than its exact plan. Scores "
    "differ as below."
)
REQUEST = (
    "Each call scores one request against N candidates. Every way to serve gets the request's features repeated for each "
    f"candidate; {OURS} is told which they are, and as {ONCE!r} gets those that are whole tensors with one row."
)


def markdown(results: Results) -> str:
    """Medians of every way to serve, one row per case and number of rows; then what stands behind them."""
    ways = _ways(results)
    head = [
        "case",
        "N",
        *ways,
        "speed-up over eager",
        f"over {_rivals(results)}",
        "fastrec serves with",
        "rounds",
    ]
    lines = [_line(head), _line(["---", "---:", *["---:"] * (len(ways) + 2), "---", "---:"])]
    for case in results.cases.values():
        for cell in case.cells:
            lines.append(_line(_row(case, cell, ways, results)))
    parts = [
        INTRODUCTION,
        *([INT8] if results.int8 else []),
        *([BF16] if results.bf16 else []),
        *([REQUEST] if results.request else []),
        "\n".join(lines),
        *_means(results),
        *_sections(results),
    ]
    return "\n\n".join(parts) + "\n"


def brief(results: Results) -> str:
    """The medians of the ways and the two ratios, slower cases included."""
    rivals = [name for name in results.rivals if name in _ways(results)]
    rows = []
    for case in results.cases.values():
        for cell in case.cells:
            ways = [_median(cell.latency.get(name), bold=False) for name in (*rivals, OURS)]
            best = cell.best(results.rivals)
            over_best = cell.speedup.get(best) if best is not None else None
            eager = cell.speedup.get("eager")
            rows.append([case.name, f"{cell.rows:,}", *ways, _ratio(eager), _ratio(over_best)])
    table = _table(["case", "N", *rivals, OURS, "over eager", f"over {_rivals(results)}"], rows)
    return "\n\n".join([table, *_means(results)])


def _ways(results: Results) -> list[str]:
    """The ways that were timed."""
    cells = [cell for case in results.cases.values() for cell in case.cells]
    return [name for name in WAYS if any(name in cell.latency for cell in cells)]


def _rivals(results: Results) -> str:
    if results.int8:
        return "the best peer of any precision"
    return "the best fp32 or bf16 peer" if results.bf16 else "the best fp32 peer"


def _means(results: Results) -> list[str]:
    meant = tuple(name for name in MEANT if not (results.int8 and name == "sasrec"))
    means = results.means(meant, MEANT_SIZES) if results.request else None
    if means is None:
        return []
    whole = len(meant) * len(MEANT_SIZES)
    return [
        f"Geometric means over {', '.join(meant)} at N = {' and '.join(map(str, MEANT_SIZES))}: "
        f"{times(means.eager)} over eager, {times(means.best)} over {_rivals(results)}"
        + ("." if means.cells == whole else f" ({means.cells} of {whole} measured).")
    ]


def _ratio(ratio: Ratio | None) -> str:
    return "-" if ratio is None else times(ratio.value)


def _row(case: CaseResult, cell: Cell, ways: list[str], results: Results) -> list[str]:
    exact = [name for name in (*FP32, OURS, ONCE) if name in cell.latency]
    fastest = min(exact, key=lambda name: cell.latency[name].p50)
    medians = [_median(cell.latency.get(name), bold=name == fastest) for name in ways]
    best = cell.best(results.rivals)
    over_best = cell.speedup.get(best) if best is not None else None
    return [
        case.name,
        f"{cell.rows:,}",
        *medians,
        _speedup(cell.speedup.get("eager")),
        _speedup(over_best) + (f" {best}" if over_best is not None else ""),
        clean(cell.chosen, 60).replace("|", "/") or "-",
        f"{next(iter(cell.latency.values())).n:,}",
    ]


def _sections(results: Results) -> Iterator[str]:
    cases, ways = results.cases.values(), _ways(results)
    peers = [peer for peer in PEERS.values() if peer.name in ways]
    bounded = _bounded(results)
    if bounded:
        yield bounded
    yield "### Ways to serve\n\n" + "\n".join(f"- {peer.name}: {peer.what}" for peer in peers)
    notes = [f"- {case.name}: {case.note}" for case in cases if case.note]
    if notes:
        yield "### Notes\n\n" + "\n".join(notes)
    absent = [
        f"- {case.name}, {name}: {_plain(reason)}" for case in cases for name, reason in case.absent.items()
    ]
    if absent:
        yield "### Could not run\n\n" + "\n".join(absent)
    yield (
        "### Preparation (seconds to prepare + seconds of the first calls; memory by which the process grew)\n\n"
        + (
            _table(
                ["case", *ways, "process"],
                [
                    [
                        case.name,
                        *(_prepared(case, name) for name in ways),
                        amount(case.resident_bytes),
                    ]
                    for case in cases
                ],
            )
        )
    )
    yield "### p95\n\n" + _table(
        ["case", "N", *ways],
        [
            [case.name, f"{cell.rows:,}", *(_p95(cell.latency.get(name)) for name in ways)]
            for case in cases
            for cell in case.cells
        ],
    )
    others = [name for name in ways if name != "eager"]
    yield "### Largest difference of a score from eager's, over one batch\n\n" + _table(
        ["case", "N", *others],
        [
            [case.name, f"{cell.rows:,}", *(_difference(cell, name) for name in others)]
            for case in cases
            for cell in case.cells
        ],
    )
    overheads = [
        f"- {case.name}, N={found.rows}: {duration(found.seconds)} "
        f"[{spans(duration(found.low), duration(found.high))}], {found.n:,} rounds"
        for case in cases
        for found in case.wrapper
    ]
    if overheads:
        yield "### What fastrec's wrapper (guards, conversions) adds to its session\n\n" + "\n".join(
            overheads
        )
    yield "### Machine\n\n" + "\n".join(
        f"- {case.name}: {case.machine}; {' '.join(case.machine.flags)}; "
        f"{case.processes} process{'es' if case.processes > 1 else ''}"
        for case in cases
    )


def _bounded(results: Results) -> str:
    """What remains to be done, the least time it takes on this machine, and the time it took."""
    rows, rates = [], []
    for case in results.cases.values():
        left = case.remaining
        if left is None:
            continue
        of_codes = left.rates.of_codes
        codes = f"{of_codes / 1e9:.0f} G of 8-bit integers, " if of_codes else ""
        rates.append(
            f"- {case.name}: {left.rates.multiply_adds / 1e9:.1f} G multiply-adds, {codes}{left.rates.bytes / 1e9:.1f} GB "
            f"written, {left.rates.lookups / 1e6:.0f} M rows of 64 bytes looked up in a second"
        )
        for cell in case.cells:
            if cell.ceiling is not None and OURS in cell.latency:
                took = cell.latency[OURS].p50
                work = [f"{number:,.0f}" for number in (left.before, left.after, left.request)]
                spent = [duration(cell.ceiling), duration(took), times(took / cell.ceiling)]
                rows.append([case.name, f"{cell.rows:,}", *work, *spent])
    if not rows:
        return ""
    head = ["case", "N", "multiply-adds per candidate", "in what serves", "once per call"]
    table = _table([*head, "ceiling", "measured", "measured / ceiling"], rows)
    return (
        "### Ceilings\n\nThe work of the program that serves over what one thread of this machine does at best: per operator "
        "call the longest of its multiply-adds, its lookups and its bytes. Other arithmetic and the calls' own overhead are "
        "left out, and so are results that elementwise calls and sums alone read.\n\n"
        f"{table}\n\nRates:\n\n" + "\n".join(rates)
    )


def chart(results: Results) -> str | None:
    """Latency relative to eager (lower is better) as an SVG, or None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    cells = [(case.name, cell) for case in results.cases.values() for cell in case.cells]
    ways = [
        name for name in (*FP32, OURS) if name != "eager" and any(name in cell.latency for _, cell in cells)
    ]
    figure = Figure(figsize=(max(6.0, 0.55 * len(cells)), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(1, len(ways))
    for k, name in enumerate(ways):
        spots = [
            (i + (k - (len(ways) - 1) / 2) * width, cell.latency[name].p50 / cell.latency["eager"].p50)
            for i, (_, cell) in enumerate(cells)
            if name in cell.latency
        ]
        axes.bar([x for x, _ in spots], [y for _, y in spots], width, label=name, color=f"C{k}")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_ylabel("median latency, eager = 1")
    axes.set_xticks(
        range(len(cells)), [f"{name} {cell.rows}" for name, cell in cells], rotation=60, ha="right"
    )
    axes.set_title("One thread, fp32; lower is faster")
    axes.margins(x=0.01)
    figure.legend(ncols=len(FP32), fontsize="small", loc="outside upper center")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join([_line(head), _line(["---", *["---:"] * (len(head) - 1)]), *map(_line, rows)])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _median(latency: Latency | None, *, bold: bool) -> str:
    if latency is None:
        return "-"
    return f"**{duration(latency.p50)}**" if bold else duration(latency.p50)


def _p95(latency: Latency | None) -> str:
    return "-" if latency is None else duration(latency.p95)


def _speedup(ratio: Ratio | None) -> str:
    return "-" if ratio is None else f"{times(ratio.value)} [{spans(times(ratio.low), times(ratio.high))}]"


def _prepared(case: CaseResult, name: str) -> str:
    found = case.prepared.get(name)
    return (
        "-"
        if found is None
        else f"{found.seconds:.1f} + {found.first_calls:.1f} s, {amount(found.grown_bytes)}"
    )


def _difference(cell: Cell, name: str) -> str:
    return difference(cell.difference[name]) if name in cell.difference else "-"


def _plain(text: str) -> str:
    return clean(text, 400).replace("|", "/").replace("<", "‹").replace(">", "›")
