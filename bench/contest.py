"""The peers as processes, and the rounds in which they take turns."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import machine
from inputs import expected
from probes import Probes
from workloads import Workload

# name: (module and its arguments, packages it needs)
PEERS: dict[str, tuple[list[str], list[str]]] = {
    "heed": (["peers.heed"], []),
    "torch": (["peers.torch_sdpa", "--way", "fused"], ["torch"]),
    "torch-math": (["peers.torch_sdpa", "--way", "math"], ["torch"]),
    "torch-flex": (["peers.torch_flex"], ["torch"]),
    "torch-unfused": (["peers.torch_unfused"], ["torch"]),
    "ort-mha": (["peers.onnxruntime", "--way", "mha"], ["onnxruntime", "onnx"]),
    "ort-gqa": (["peers.onnxruntime", "--way", "gqa"], ["onnxruntime", "onnx"]),
    "ort-attention": (["peers.onnxruntime", "--way", "attention"], ["onnxruntime", "onnx"]),
    "openvino": (["peers.openvino"], ["openvino"]),
    "jax": (["peers.jax_dpa"], ["jax", "jaxlib"]),
}

# The largest error that is still this dtype's, in units of the output's RMS. A result is rounded once, to half a unit in
# the last place of a number of up to 5 RMS (2^-12 and 2^-9 of it), and weights may be rounded before the second product:
# four times that. In f32 what counts is thousands of additions and a fast exp; bf16 in disguise is off by 1e-2. A
# gradient goes through two more such products, and its largest elements are further from its RMS: four times that again.
BOUND = {"f32": 1e-4, "f16": 1e-2, "bf16": 8e-2}

# These compute all L x S scores of a head, or of all heads: seconds and gigabytes on the long rows.
UNFUSED = {"torch-math", "torch-unfused", "ort-mha", "ort-attention", "openvino", "jax"}

PATIENCE = 300.0  # seconds for one answer
PAUSE = 0.005  # seconds between turns: idle threads of the last peer go to sleep


class Gone(Exception):
    """The peer's process ended or does not answer."""


class Child:
    """A peer's process."""

    def __init__(self, name: str, threads: int, environment: dict[str, str], log: Path) -> None:
        cores = sorted(os.sched_getaffinity(0))[:threads]
        self.name, self.log = name, log
        self.busy = 0.0  # seconds of processor time it took while others had their turn
        self.waited = 0.0
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *PEERS[name][0], "--threads", str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                cwd=Path(__file__).parent,
                env=os.environ | environment,
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
            )
        self.hello: dict[str, Any] = {}
        self._pending = b""
        self._left = 0.0
        self._ticks = 0.0

    def _spent(self) -> float:
        """Seconds of processor time of all its threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _ended(self) -> Gone:
        status = self.process.wait()
        words = self.log.read_text(errors="replace").strip().splitlines()
        return Gone(f"ended with status {status}{': ' + words[-1][:200] if words else ''}")

    def read(self) -> dict[str, Any]:
        assert self.process.stdout
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._pending:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.stop(kill=True)
                raise Gone(f"gave no answer for {PATIENCE:g} s")
            got = os.read(self.process.stdout.fileno(), 1 << 16)
            if not got:
                raise self._ended()
            self._pending += got
        line, self._pending = self._pending.split(b"\n", 1)
        return json.loads(line)

    def ask(self, do: str, row: str, **more: Any) -> dict[str, Any]:
        assert self.process.stdin
        try:
            if self._left:
                self.busy += self._spent() - self._ticks
                self.waited += time.monotonic() - self._left
            self.process.stdin.write(json.dumps({"do": do, "row": row, **more}).encode() + b"\n")
            answer = self.read()
            time.sleep(PAUSE)
            self._left, self._ticks = time.monotonic(), self._spent()
            return answer
        except OSError as e:
            raise self._ended() from e

    def close(self) -> None:
        """Tells it that there is nothing more to do."""
        assert self.process.stdin
        self.process.stdin.close()

    def stop(self, kill: bool = False) -> None:
        if kill:
            self.process.kill()
        self.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass
class Cell:
    """What one peer did on one row."""

    how: str = ""
    why_not: str = ""  # not timed, and why; "" if it was
    beaten: bool = False  # stopped running the row, see Contest._beaten
    max_error: float | None = None
    error: float | None = None  # the same over the output's RMS
    medians: list[float] = field(default_factory=list)  # one a round, seconds a call
    minima: list[float] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        return float(np.median(self.medians)) if self.medians else None

    @property
    def best(self) -> float | None:
        return min(self.medians) if self.medians else None


@dataclass
class Contest:
    children: dict[str, Child]
    probes: Probes | None
    scratch: Path
    threads: int
    say: Callable[[str], None]
    quick: bool = False
    patience: int = 3  # rounds that every peer runs, however slow
    cells: dict[str, dict[str, Cell]] = field(default_factory=dict)  # row, peer
    gone: dict[str, str] = field(default_factory=dict)

    def _ask(self, peer: str, do: str, row: str, **more: Any) -> dict[str, Any]:
        if peer in self.gone:
            return {"failed": f"no longer running: {self.gone[peer]}"}
        try:
            return self.children[peer].ask(do, row, **more)
        except Gone as e:
            self.gone[peer] = str(e)
            return {"failed": str(e)}

    def _left_out(self, peer: str, w: Workload) -> str:
        """Why this peer is not asked at all: for want of memory or, in a quick run, because it cannot be the best one."""
        scores = w.Hq * w.L * w.S * w.B
        need, free = (24 if w.train else 12) * scores / 1e9, machine.free_memory() / 1e9  # as f32, and two copies on the way
        if peer in UNFUSED and need > free - 2:
            return f"left out: its L x S scores take {need:.0f} GB and {free:.0f} GB are free"
        if not self.quick:
            return ""
        if peer == "torch-flex" and not (w.window or w.softcap):
            return "left out of quick runs: it compiles for seconds, and is alone only in fusing windows and softcap"
        if scores < 1 << 16:
            return ""
        if peer in UNFUSED and scores > 1 << 26:
            return "left out of quick runs: it computes all L x S scores"
        if peer in ("torch-math", "jax") and w.cold:
            return "left out of quick runs: it takes ten times as long as others in decode"
        if peer == "torch-unfused" and w.dtype == "f16" and w.L > 1:
            return "left out of quick runs: a product in f16 takes it seconds"
        return ""

    def _ready(self, peer: str, w: Workload, truth: np.ndarray) -> None:
        """Prepares the row in that peer and compares its result; the cell then says whether it may be timed."""
        cell = self.cells[w.row].setdefault(peer, Cell())
        cell.why_not = cell.why_not or self._left_out(peer, w)
        if cell.why_not or self._beaten(peer, w):
            return
        answer = self._ask(peer, "prepare", w.row)
        cell.how = answer.get("how", "")
        if not answer.keys() & {"cannot", "failed"}:
            file = self.scratch / f"{peer}.npy"
            answer = self._ask(peer, "check", w.row, to=str(file))
        cell.why_not = answer.get("cannot", answer.get("failed", ""))
        if not cell.why_not:
            off = np.abs(np.load(file) - truth).max((1, 2))
            file.unlink()
            cell.max_error, cell.error = float(off.max()), float((off / np.sqrt(np.mean(truth**2, (1, 2)))).max())
            bound = BOUND[w.dtype] * (4 if w.train else 1)
            if not cell.error <= bound:
                cell.why_not = f"off by {cell.error:.1e} of the result's RMS, more than {bound:g}"
        if cell.why_not:
            self._ask(peer, "drop", w.row)

    def _beaten(self, peer: str, w: Workload) -> bool:
        """After a few rounds a peer that takes twice the time of the best one stops running the row: its time cannot
        matter any more. At ten times, one round is enough."""
        cells = self.cells[w.row]
        median = cells[peer].median
        if peer == "heed" or median is None or cells[peer].beaten:  # once beaten, it has dropped the row
            return cells[peer].beaten
        behind = median / min(c.median for p, c in cells.items() if p != "heed" and c.median)
        return behind > 10 or (behind > 2 and len(cells[peer].medians) >= self.patience)

    def check(self, rows: list[Workload]) -> None:
        for w in rows:
            self.say(f"{w.row}: checking")
            truth = expected(w)
            self.cells.setdefault(w.row, {})
            for peer in self.children:
                if peer == "heed" or not w.alone:
                    self._ready(peer, w, truth)

    def drop(self, rows: list[Workload]) -> None:
        for w in rows:
            for peer, cell in self.cells[w.row].items():
                if not cell.why_not:
                    self._ask(peer, "drop", w.row)

    def time(self, rows: list[Workload], rounds: int, seconds: float) -> None:
        """Rounds in which every peer does every row once."""
        for r in range(rounds):
            self.say(f"{', '.join(w.row for w in rows)}: round {r + 1} of {rounds}")
            if self.probes:
                for threads in sorted({w.threads or self.threads for w in rows}, reverse=True):
                    self.probes.sample(threads)
            for w in rows:
                cells = self.cells[w.row]
                order = list(cells)
                for peer in order[r % len(order) :] + order[: r % len(order)]:
                    cell = cells[peer]
                    if cell.why_not:
                        continue
                    if self._beaten(peer, w):
                        if not cell.beaten:
                            self._ask(peer, "drop", w.row)
                        cell.beaten = True
                        continue
                    answer = self._ask(peer, "time", w.row, seconds=seconds)
                    if "median" not in answer:
                        cell.why_not = answer.get("failed", "gave no time")
                        continue
                    cell.medians.append(answer["median"])
                    cell.minima.append(answer["minimum"])
                    cell.calls.append(answer["calls"])
