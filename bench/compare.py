"""The body of bench/compare, which says how to use it: installs the peers, runs the rounds, prints and writes the results."""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine
import report
from contest import PEERS, Child, Contest, Gone
from probes import Probes
from workloads import BY_NAME, ROWS, SELFTEST, Workload

HERE = Path(__file__).parent
ROUNDS_A_VISIT = (
    4  # a row is visited again later in a long run, so that one bad minute does not spoil all of its rounds
)


def say(text: str) -> None:
    """Progress: one line that is drawn anew on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def pins() -> dict[str, str]:
    lines = (HERE / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def install(packages: list[str]) -> str:
    """Installs what is not there in its pinned version. Returns why it failed, "" if it did not."""
    wanted = []
    for name in packages:
        try:
            found = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found = ""
        if found != pins()[name]:
            wanted.append(f"{name}=={pins()[name]}")
    if not wanted:
        return ""
    print(f"==> Installing {' '.join(wanted)}", flush=True)
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return (errors or [f"pip ended with status {done.returncode}"])[-1] if done.returncode else ""


def start(names: list[str], threads: int) -> dict[str, Child]:
    """The peers that can be had, as running processes; says in a line why another cannot."""
    children: dict[str, Child] = {}
    broken: dict[tuple[str, ...], str] = {}
    # Generous to PyTorch: its tensors come from malloc, and a heap that keeps its pages spares it the page faults.
    keep = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(64 << 20)}
    for name in names:
        needs = tuple(PEERS[name][1])
        if needs not in broken:
            broken[needs] = install(list(needs))
        if broken[needs]:
            print(f"{name} is left out: {broken[needs]}")
            continue
        log = Path(os.environ["HEED_BENCH_LOGS"]) / f"{name}.log"
        children[name] = Child(name, threads, keep if name.startswith("torch") else {}, log)
    for name, child in list(children.items()):
        try:
            child.hello = child.read()
        except Gone as e:
            if name == "heed":
                sys.exit(f"compare: Heed itself does not start: {e}")
            print(f"{name} is left out: {e}")
            del children[name]
    return children


def chosen(pattern: str, names: list[str], what: str, beginnings: bool = False) -> list[str]:
    found: list[str] = []
    for part in filter(None, pattern.split(",")):
        hits = [n for n in names if fnmatch.fnmatch(n, part) or (beginnings and n.startswith(part))]
        if not hits:
            sys.exit(f"compare: there is no {what} '{part}'; there are {', '.join(names)}")
        found += hits
    return [n for n in names if n in found]


def groups(rows: list[Workload]) -> list[list[Workload]]:
    """Rows that are timed in the same rounds."""
    out: list[list[Workload]] = []
    for w in rows:
        if out and w.together and out[-1][0].together == w.together:
            out[-1].append(w)
        else:
            out.append([w])
    return out


def selftest(children: dict[str, Child], scratch: Path, threads: int) -> int:
    contest = Contest(children, None, scratch, threads, say, quick=True)
    contest.check(SELFTEST)
    contest.drop(SELFTEST)
    say("")
    table = [["error", *children]]
    bad = 0
    for w in SELFTEST:
        cells = contest.cells[w.row]
        table.append(
            [w.what, *(f"{c.error:.0e}" if c.error is not None and not c.why_not else "-" for c in cells.values())]
        )
        bad += sum(c.why_not.startswith("off by") for c in cells.values())
    print(*report.lines([row + [""] for row in table], 1), "", sep="\n")
    print(*report.reasons(SELFTEST, contest.cells), sep="\n")
    timed = sum(not c.why_not for cells in contest.cells.values() for c in cells.values())
    print(f"{timed} results right, {bad} wrong")
    return 1 if bad else 0


def commit() -> str:
    """Which Heed this is, "-dirty" if files differ from it; "" outside of a repository."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def write(results: dict[str, Any], file: Path) -> None:
    """All of it or nothing: under another name first."""
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=file.name, delete=False) as f:
        json.dump(results, f, indent=1, ensure_ascii=False)
        f.write("\n")
    os.chmod(f.name, 0o644)
    os.replace(f.name, file)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/compare")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", default="")
    parser.add_argument("--peers", default="")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--selftest", action="store_true")
    o = parser.parse_args()

    if o.list:
        for w in ROWS:
            print(f"{w.row:9} {w.what:48} {w.flops / 1e9:8.2f} GFLOP {w.bytes / 1e6:7.1f} MB of K and V")
        print("peers:", ", ".join(PEERS))
        return 0
    cores = len(os.sched_getaffinity(0))
    if not 1 <= o.threads <= cores:
        sys.exit(f"compare: --threads {o.threads} does not fit; this machine lends {cores} cores")
    rounds = o.rounds or (3 if o.quick else 8)
    names = ["heed", *chosen(o.peers, list(PEERS)[1:], "peer", beginnings=True)] if o.peers else list(PEERS)
    wanted = set(chosen(o.rows, [w.row for w in ROWS], "row") if o.rows else [w.row for w in ROWS])
    rows = [w for w in ROWS if w.row in wanted or any(w.row == BY_NAME[r].of_row for r in wanted)]

    began, clock, load = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.monotonic(), machine.load()
    children = start(names, o.threads)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            if o.selftest:
                return selftest(children, Path(scratch), o.threads)
            probes = Probes(Path(os.environ["HEED_PROBES"]), 0.01 if o.quick else 0.03)
            contest = Contest(children, probes, Path(scratch), o.threads, say, o.quick, 1 if o.quick else 3)
            left = rounds
            while left > 0:
                visit = min(left, ROUNDS_A_VISIT)
                for group in groups(rows):
                    contest.check(group)
                    contest.time(group, visit, 0.03 if o.quick else 0.05)
                    contest.drop(group)
                left -= visit
    finally:
        for child in children.values():
            child.close()
        for child in children.values():
            child.stop()
    say("")

    loads = (load, machine.load())
    about = machine.describe()
    verdicts = {w.row: report.judge(w, BY_NAME, contest.cells, probes.samples, o.threads) for w in rows}
    idle = {n: c.busy / c.waited for n, c in children.items() if c.waited}
    run = f"{o.threads} threads; {began}; {rounds} rounds{', QUICK: for a look, not for the record' if o.quick else ''}"
    print(*report.header(about, run, loads, probes.samples, idle), "", sep="\n")
    print(*report.promises(rows, contest.cells, verdicts), "", sep="\n")
    print(*report.all_times(rows, contest.cells, list(children)), "", sep="\n")
    print(*report.reasons(rows, contest.cells), "", sep="\n")

    def row(w: Workload) -> dict[str, Any]:
        cells = {p: asdict(c) | {"median": c.median, "best": c.best} for p, c in contest.cells[w.row].items()}
        return asdict(w) | {
            "pairs": w.pairs,
            "flops": w.flops,
            "kv_bytes": w.bytes,
            "verdict": asdict(verdicts[w.row]),
            "peers": cells,
        }

    write(
        {
            "quick": o.quick,
            "began": began,
            "seconds": round(time.monotonic() - clock, 1),
            "rounds": rounds,
            "threads": o.threads,
            "machine": about,
            "load": loads,
            "commit": commit(),
            "heed_library": os.environ["HEED_LIBRARY"],
            "heed_target": os.environ.get("HEED_TARGET", ""),
            "peers": {n: c.hello | {"idle_share_of_a_core": idle.get(n)} for n, c in children.items()},
            "gone": contest.gone,
            "probes": {str(t): asdict(s) | {"walk": probes.walk[t]} for t, s in probes.samples.items()},
            "rows": [row(w) for w in rows],
        },
        HERE / "results.json",
    )
    print(f"bench/results.json has every sample; {time.monotonic() - clock:.0f} s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ncompare: interrupted; no results were written")
