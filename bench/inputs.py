"""The numbers that go into a workload, and the ones that must come out.

Every process makes its own inputs from a counter-based generator, so that all see the same bits and none are sent.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from workloads import Workload

NUMPY = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
CHECKED_ROWS = 96


@dataclass
class Inputs:
    q: np.ndarray  # [B, Hq, L, D]
    k: np.ndarray  # [B, Hkv, S, D]
    v: np.ndarray  # [B, Hkv, S, D]
    bias: np.ndarray | None  # [1, Hq, L, S]
    lengths: np.ndarray | None  # [B], int64


def _generator(w: Workload, name: str) -> np.random.Generator:
    shape = f"{name} {w.B} {w.Hq} {w.Hkv} {w.L} {w.S} {w.D}"
    return np.random.Generator(np.random.Philox(key=zlib.crc32(shape.encode())))


def make(w: Workload) -> Inputs:
    def normal(name: str, heads: int, length: int) -> np.ndarray:
        x = _generator(w, name).standard_normal((w.B, heads, length, w.D), dtype=np.float32)
        return x.astype(NUMPY[w.dtype])

    bias = None
    if w.bias:
        bias = _generator(w, "bias").random((1, w.Hq, w.L, w.S), dtype=np.float32)
        bias -= 0.5
        bias = bias.astype(NUMPY[w.dtype], copy=False)
    return Inputs(
        normal("q", w.Hq, w.L),
        normal("k", w.Hkv, w.S),
        normal("v", w.Hkv, w.S),
        bias,
        w.key_lengths().astype(np.int64) if w.padded else None,
    )


def checked_rows(w: Workload) -> tuple[np.ndarray, ...]:
    """Which output rows are compared: (batch, head, query), spread over all of them, the first and the last included."""
    rows = w.B * w.Hq * w.L
    at = np.unique(np.linspace(0, rows - 1, min(rows, CHECKED_ROWS)).astype(np.int64))
    return np.unravel_index(at, (w.B, w.Hq, w.L))


def expected(w: Workload) -> np.ndarray:
    """The checked rows in float64 from the inputs as the peers get them, [rows, D]."""
    x = make(w)
    first, end = w.spans()
    out = []
    heads: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    for b, h, i in zip(*checked_rows(w)):
        head = (b, h // (w.Hq // w.Hkv))
        if head not in heads:
            heads = {head: (x.k[head].astype(np.float64), x.v[head].astype(np.float64))}
        k, v = heads[head]
        keys = slice(first[b, i], end[b, i])
        s = k[keys] @ x.q[b, h, i].astype(np.float64) / np.sqrt(w.D)
        if w.softcap:
            s = w.softcap * np.tanh(s / w.softcap)
        if x.bias is not None:
            s += x.bias[0, h, i, keys].astype(np.float64)
        p = np.exp(s - s.max())
        out.append(p @ v[keys] / p.sum())
    return np.array(out)
