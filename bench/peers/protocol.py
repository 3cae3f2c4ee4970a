"""What the peers share: the lines they speak, and how a call is timed.

A peer is a process of its own that reads one JSON object a line on standard input and answers each with one on standard
output: prepare a row, check it (run it once and save the rows that are compared), time it, drop it. Whatever else the
library prints goes to standard error. The peer's file says how to prepare a row, as a Run.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import sys
import time
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from inputs import Inputs, checked
from workloads import BY_NAME, Workload

SLOW = 1.5  # seconds; a call that takes longer is not warmed up again in each round


class Cannot(Exception):
    """The peer has no way to do this row; the text says what is missing."""


class Run:
    """A row made ready: inputs in the peer's own layout, whatever it compiles compiled."""

    how = ""  # what is called, if the peer's name does not tell

    def call(self, i: int) -> None:
        """Does the row's work, with the i-th copy (modulo their number) of keys and values; returns when it is done."""
        raise NotImplementedError

    def result(self) -> np.ndarray | list[np.ndarray]:
        """The last call's output, [B, Hq, L, D]; for training d_q, d_k, d_v and, if there is a bias, its gradient."""
        raise NotImplementedError

    def seconds(self, calls: int) -> list[float]:
        """Times that many calls, one by one."""
        times = []
        for i in range(calls):
            start = time.perf_counter()
            self.call(i)
            times.append(time.perf_counter() - start)
        return times


class Peer(Protocol):
    waits: str  # what keeps its idle threads from taking cores
    versions: dict[str, str]
    trains: bool  # whether it has a backward; False if it says nothing

    def prepare(self, w: Workload, x: Inputs) -> Run:
        """Raises Cannot."""
        ...


def options(*variants: str) -> argparse.Namespace:
    """The command line of a peer; variants: the values its --way may have, if it has several."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    if variants:
        parser.add_argument("--way", choices=variants, required=True)
    return parser.parse_args()


def copies(w: Workload, *arrays: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """The arrays as often as the row wants them, each time somewhere else in memory."""
    return [arrays] + [tuple(a.copy() for a in arrays) for _ in range(w.copies - 1)]


def _time(run: Run, seconds: float) -> dict[str, Any]:
    """Untimed calls, then enough timed ones to fill that many seconds; a call that takes longer is timed once."""
    times: list[float] = []
    if not getattr(run, "slow", False):
        last = run.seconds(1)[0]
        if last < seconds:
            last = run.seconds(1)[0]
        while sum(times) < seconds:
            times += run.seconds(max(1, min(10_000, int((seconds - sum(times)) / max(last, 1e-9)))))
            last = times[-1]
    else:
        times = run.seconds(1)
    run.slow = min(times) > SLOW  # type: ignore[attr-defined]
    return {"median": float(np.median(times)), "minimum": min(times), "calls": len(times)}


def _answer(peer: Peer, runs: dict[str, Run], ask: dict[str, Any]) -> dict[str, Any]:
    row = ask["row"]
    w = BY_NAME[row]
    if ask["do"] == "prepare":
        if w.train and not getattr(peer, "trains", False):
            raise Cannot("it has no backward pass, or none is asked for in its file")
        runs[row] = peer.prepare(w, Inputs(w))
        return {"how": runs[row].how}
    if ask["do"] == "check":
        start = time.perf_counter()
        runs[row].call(w.copies - 1)
        took = time.perf_counter() - start
        runs[row].slow = took > 2 * SLOW  # type: ignore[attr-defined]
        run = runs[row]
        if w.dropout:  # everybody drops others: what can be compared is the row without it
            run = peer.prepare(replace(w, dropout=0.0), Inputs(w))
            run.call(w.copies - 1)
        np.save(ask["to"], checked(w, run.result()))
        return {"first": took}
    if ask["do"] == "time":
        return _time(runs[row], ask["seconds"])
    if ask["do"] == "drop":
        runs.pop(row, None)
        return {}
    raise ValueError(f"unknown request {ask['do']!r}")


def serve(peer: Peer) -> None:
    """Answers until standard input ends."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    libc = ctypes.CDLL(None)
    runs: dict[str, Run] = {}
    print(json.dumps({"waits": peer.waits, "versions": peer.versions}), file=out)
    for line in sys.stdin:
        try:
            answer = _answer(peer, runs, json.loads(line))
        except Cannot as e:
            answer = {"cannot": str(e)}
        except Exception as e:  # whatever the library throws belongs in the table, not in a traceback
            text = " ".join(str(e).split())
            answer = {"failed": f"{type(e).__name__}: {text[:300]}"}
        gc.collect()
        # A peer that waits gives its freed memory back: several unfused paths together would not fit.
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
        print(json.dumps(answer), file=out)
