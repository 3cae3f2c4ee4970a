"""The numbers that go into a workload, and the ones that must come out.

Every process makes its own inputs from a counter-based generator, so that all see the same bits and none are sent.
"""

from __future__ import annotations

import zlib
from functools import cached_property

import ml_dtypes
import numpy as np

from workloads import Workload

NUMPY = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
CHECKED_ROWS = 96


class Inputs:
    """A workload's arrays, each made when it is first asked for: a peer that cannot do the row asks for none."""

    def __init__(self, w: Workload) -> None:
        self.w = w

    def _generator(self, name: str) -> np.random.Generator:
        w = self.w
        shape = f"{name} {w.B} {w.Hq} {w.Hkv} {w.L} {w.S} {w.D}"
        return np.random.Generator(np.random.Philox(key=zlib.crc32(shape.encode())))

    def _normal(self, name: str, heads: int, length: int) -> np.ndarray:
        x = self._generator(name).standard_normal((self.w.B, heads, length, self.w.D), dtype=np.float32)
        return x.astype(NUMPY[self.w.dtype], copy=False)

    @cached_property
    def q(self) -> np.ndarray:
        return self._normal("q", self.w.Hq, self.w.L)

    @cached_property
    def k(self) -> np.ndarray:
        return self._normal("k", self.w.Hkv, self.w.S)

    @cached_property
    def v(self) -> np.ndarray:
        return self._normal("v", self.w.Hkv, self.w.S)

    @cached_property
    def bias(self) -> np.ndarray | None:
        """[1, Hq, L, S]"""
        if not self.w.bias:
            return None
        x = self._generator("bias").random((1, self.w.Hq, self.w.L, self.w.S), dtype=np.float32)
        x -= 0.5
        return x.astype(NUMPY[self.w.dtype], copy=False)

    @cached_property
    def lengths(self) -> np.ndarray | None:
        """[B]"""
        return self.w.key_lengths().astype(np.int64) if self.w.padded else None


def checked_rows(w: Workload) -> tuple[np.ndarray, ...]:
    """Which output rows are compared: (batch, head, query), spread over all of them, the first and the last included."""
    rows = w.B * w.Hq * w.L
    at = np.unique(np.linspace(0, rows - 1, min(rows, CHECKED_ROWS)).astype(np.int64))
    return np.unravel_index(at, (w.B, w.Hq, w.L))


def expected(w: Workload) -> np.ndarray:
    """The checked rows in float64 from the inputs as the peers get them, [rows, D]."""
    x = Inputs(w)
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
