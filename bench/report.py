"""Verdicts and tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from contest import Cell
from probes import Samples
from workloads import Workload


@dataclass
class Verdict:
    share: float | None  # of the floor, in our best round
    ratio: float | None  # the best peer's median over ours
    best_peer: str
    got: str
    wanted: str
    holds: bool | None  # None: cannot be told


def best_peer(w: Workload, cells: dict[str, Cell]) -> str:
    timed = {p: c.median for p, c in cells.items() if p != "heed" and c.median and (not w.against or p in w.against)}
    return min(timed, key=lambda p: timed[p]) if timed else ""


def _share(w: Workload, cells: dict[str, dict[str, Cell]], samples: dict[int, Samples], threads: int) -> float | None:
    ours = cells.get(w.row, {}).get("heed")
    probe = samples.get(w.threads or threads)
    if not ours or not ours.best or not probe:
        return None
    return w.floor(probe.peak(), probe.bandwidth()) / ours.best


def judge(
    w: Workload,
    rows: dict[str, Workload],
    cells: dict[str, dict[str, Cell]],
    samples: dict[int, Samples],
    threads: int,
) -> Verdict:
    ours = cells[w.row].get("heed", Cell())
    share = _share(w, cells, samples, threads)
    peer = best_peer(w, cells[w.row])
    theirs = cells[w.row][peer].median if peer else None
    ratio = theirs / ours.median if theirs and ours.median else None
    micro = ours.median * 1e6 if ours.median else None
    other = cells.get(w.of_row, {}).get("heed", Cell()).median
    speed = other / ours.median if other and ours.median else None
    base = _share(rows[w.of_row], cells, samples, threads) if w.of_row else None
    apart = share - base if share is not None and base is not None else None

    got, wanted, kept = [], [], []

    def promise(
        target: float | None, want: str, value: float | None, text: Callable[[float], str], keeps: bool
    ) -> None:
        if target is None:
            return
        wanted.append(want.format(target))
        got.append("?" if value is None else text(value))
        kept.append(None if value is None else keeps)

    def least(value: float | None, target: float | None) -> bool:
        return value is not None and target is not None and value >= target

    promise(w.share, "≥ {:.0%}", share, "{:.1%}".format, least(share, w.share))
    promise(w.speed, "≥ {:g} of " + w.of_row, speed, "{:.2f}".format, least(speed, w.speed))
    promise(
        w.points,
        f"{w.of_row}'s ± {100 * (w.points or 0):g}",
        apart,
        lambda x: f"{share:.1%}, {100 * x:+.1f} points",
        least(w.points, abs(apart or 0)),
    )
    promise(w.microseconds, "≤ {:g} µs", micro, "{:.2f} µs".format, least(w.microseconds, micro))
    if w.error is not None:
        fused = cells[w.row].get("torch", Cell())
        part = ours.error / fused.error if ours.error and fused.error else None
        promise(w.error, "error ≤ {:g} of torch's", part, "error {:.2f}".format, least(w.error, part))
    if w.ratio is not None:
        kept.append(None if ratio is None else ratio >= w.ratio)
    holds: bool | None = None
    if not ours.median or False in kept:
        holds = False
    elif None not in kept:
        holds = True
    return Verdict(share, ratio, peer, ", ".join(got), ", ".join(wanted), holds)


def _ms(seconds: float | None) -> str:
    if not seconds:
        return "-"
    ms = seconds * 1e3
    return f"{ms:.4f}" if ms < 0.1 else f"{ms:.3f}" if ms < 10 else f"{ms:.1f}" if ms < 1000 else f"{ms:.0f}"


def _error(cell: Cell) -> str:
    return f"{cell.error:.0e}".replace("e-0", "e-") if cell.error is not None else "-"


def lines(table: list[list[str]], left: int) -> list[str]:
    """Columns as wide as their widest cell; the first `left` are aligned on the left, the rest on the right."""
    widths = [max(len(row[c]) for row in table) for c in range(len(table[0]))]

    def line(row: list[str]) -> str:
        cells = [
            t.ljust(n) if c < left or c == len(row) - 1 else t.rjust(n) for c, (t, n) in enumerate(zip(row, widths))
        ]
        return "  ".join(cells).rstrip()

    return [line(table[0]), "-" * (sum(widths) + 2 * len(widths) - 2), *map(line, table[1:])]


def header(
    machine: dict[str, object],
    run: str,
    loads: tuple[float, float],
    samples: dict[int, Samples],
    idle: dict[str, float],
) -> list[str]:
    virtual = ", virtual" if machine["virtual"] else ""
    out = [
        f"{machine['cpu']} (family, model {machine['family, model']}), {machine['cores']} cores{virtual}; {run}",
        f"load {loads[0]:.2f} at the start, {loads[1]:.2f} at the end; the probes' best rounds:",
    ]
    for threads, s in sorted(samples.items(), reverse=True):
        peaks = ", ".join(f"{name} {max(rates) / 1e9:.1f}" for name, rates in s.fma.items())
        out.append(
            f"  {threads} thread{'s' if threads > 1 else ''}: peak {s.peak() / 1e9:.1f} GFLOP/s ({peaks}; "
            f"median {np.median(max(s.fma.values(), key=max)) / 1e9:.1f}), L1-resident tile {s.best_tile() / s.peak():.0%} of it, reading {s.bandwidth() / 1e9:.1f} GB/s "
            f"(median {np.median(s.read) / 1e9:.1f})"
        )
    out += [f"{n} kept {x:.0%} of a core busy while others were timed" for n, x in idle.items() if x > 0.02]
    return out


def promises(rows: list[Workload], cells: dict[str, dict[str, Cell]], verdicts: dict[str, Verdict]) -> list[str]:
    table = [
        ["row", "B, H, L, S, D", "Heed ms", "reached", "target", "best peer", "its ms", "ratio", "target", "errors", ""]
    ]
    for w in rows:
        v, ours = verdicts[w.row], cells[w.row].get("heed", Cell())
        theirs = cells[w.row].get(v.best_peer, Cell())
        word = "-" if ours.why_not and not ours.medians else ""
        holds = {True: "holds", False: "falls short", None: "cannot be told"}[v.holds]
        reached = v.got or (f"{v.share:.1%}" if v.share else "-")
        table.append(
            [
                w.row,
                w.what,
                word or _ms(ours.median),
                reached,
                v.wanted,
                v.best_peer or "-",
                _ms(theirs.median),
                f"{v.ratio:.2f}" if v.ratio else "-",
                f"≥ {w.ratio:g}" if w.ratio else "",
                f"{_error(ours)} {_error(theirs)}",
                holds,
            ]
        )
    return lines(table, 2)


def all_times(rows: list[Workload], cells: dict[str, dict[str, Cell]], peers: list[str]) -> list[str]:
    table = [["ms", *peers]]
    for w in rows:
        if not w.alone:
            table.append([w.row, *(_ms(cells[w.row].get(p, Cell()).median) for p in peers)])
    return lines([row + [""] for row in table], 1) if len(table) > 1 else []


def reasons(rows: list[Workload], cells: dict[str, dict[str, Cell]]) -> list[str]:
    """Each reason for a "-" once, with the rows it is for."""
    where: dict[tuple[str, str], list[str]] = {}
    for w in rows:
        for peer, cell in cells[w.row].items():
            if cell.why_not:
                where.setdefault((peer, cell.why_not), []).append(w.row)
    return [f"{peer} on {', '.join(names)}: {why}" for (peer, why), names in where.items()]
