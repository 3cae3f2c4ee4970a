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
CHECKED_GRADIENTS = 12  # rows of each gradient, in the first and in the last head


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
    def w_additive(self) -> np.ndarray:
        """[1, 1, 1, D]"""
        return (self._generator("w").random((1, 1, 1, self.w.D), dtype=np.float32) - 0.5).astype(NUMPY[self.w.dtype])

    @cached_property
    def d_out(self) -> np.ndarray:
        return self._normal("d_out", self.w.Hq, self.w.L)

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


def checked(w: Workload, result: np.ndarray | list[np.ndarray]) -> np.ndarray:
    """What is compared of a peer's result in float64, [parts, rows, D]: of out, or of the gradients in turn (of the bias's,
    [1, Hq, L, S], the first D keys)."""
    if not w.train:
        return np.asarray(result)[checked_rows(w)].astype(np.float64)[None]
    parts = []
    for gradient in result:
        rows = np.linspace(0, gradient.shape[2] - 1, CHECKED_GRADIENTS).astype(np.int64)
        parts.append([gradient[at][rows, : w.D].astype(np.float64) for at in ((0, 0), (-1, -1))])
    return np.array(parts).reshape(len(parts), -1, w.D)


def gradients_of_head(w: Workload, x: Inputs, b: int, h: int) -> list[np.ndarray]:
    """d_q, d_k, d_v and the gradient of the scores' bias of one head in float64."""
    assert w.Hq == w.Hkv and not w.softcap, "no row for training has these"
    q, k, v, d_out = (t[b, h].astype(np.float64) for t in (x.q, x.k, x.v, x.d_out))
    first, end = (t[b] for t in w.spans())
    j = np.arange(w.S)
    w_a, t = x.w_additive.ravel().astype(np.float64), np.zeros(0)
    if w.additive:
        t = np.tanh(q[:, None] + k[None])
        p = t @ w_a
    else:
        p = q @ k.T / np.sqrt(w.D)
    if x.bias is not None:
        p += x.bias[0, h]
    p[(j < first[:, None]) | (j >= end[:, None])] = -np.inf
    p = np.exp(p - p.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    d_v = p.T @ d_out
    ds = d_out @ v.T
    ds -= (ds * p).sum(-1, keepdims=True)
    ds *= p
    if w.additive:
        to_both = ds[..., None] * w_a * (1 - t**2)
        return [to_both.sum(1), to_both.sum(0), d_v]
    return [ds @ k / np.sqrt(w.D), ds.T @ q / np.sqrt(w.D), d_v, ds]


def expected_gradients(w: Workload) -> np.ndarray:
    x = Inputs(w)
    heads = [gradients_of_head(w, x, b, h) for b, h in ((0, 0), (w.B - 1, w.Hq - 1))]
    parts: list[list[np.ndarray]] = [[head[part] for head in heads] for part in range(3)]
    if w.bias:  # shared by the batch
        others = [(b, h) for h in (0, w.Hq - 1) for b in range(w.B) if (b, h) not in ((0, 0), (w.B - 1, w.Hq - 1))]
        parts.append([head[3].copy() for head in heads])
        for b, h in others:
            parts[3][0 if h == 0 else 1] += gradients_of_head(w, x, b, h)[3]
    rows = [np.linspace(0, part[0].shape[0] - 1, CHECKED_GRADIENTS).astype(np.int64) for part in parts]
    return np.array([[g[r, : w.D] for g in part] for part, r in zip(parts, rows)]).reshape(len(parts), -1, w.D)


def expected(w: Workload) -> np.ndarray:
    """What `checked` picks, in float64 from the inputs as the peers get them, [parts, rows, D]."""
    if w.train:
        return expected_gradients(w)
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
    return np.array(out)[None]
