"""Heed itself, through its C API; the calls are made and timed in C (heed_bench_calls of probes.cc).

    HEED_LIBRARY=build-bench/heed/libheed.so HEED_PROBES=build-bench/libprobes.so python -m peers.heed --threads 2

A plan is kept across the calls of a row, as a layer would keep it.
"""

from __future__ import annotations

import ctypes as c
import os

import numpy as np

from inputs import Inputs
from peers.protocol import Cannot, Run, copies, options, serve
from workloads import Workload

DTYPES = {"f32": 0, "f16": 2, "bf16": 3}


class Tensor(c.Structure):
    _fields_ = [("data", c.c_void_p), ("dtype", c.c_int), ("shape", c.c_int64 * 4), ("stride", c.c_int64 * 4)]


class Executor(c.Structure):
    _fields_ = [("self", c.c_void_p), ("concurrency", c.c_int), ("run", c.c_void_p)]


class Pages(c.Structure):
    _fields_ = [
        ("table", c.c_void_p),
        ("table_stride", c.c_int64),
        ("table_columns", c.c_int64),
        ("keys", c.c_void_p),
        ("k_scale", Tensor),
        ("v_scale", Tensor),
    ]


class ScoreMod(c.Structure):
    _fields_ = [("self", c.c_void_p), ("run_f32", c.c_void_p), ("run_f64", c.c_void_p)]


class Attention(c.Structure):
    _fields_ = [
        ("size", c.c_size_t),
        ("q", Tensor),
        ("k", Tensor),
        ("v", Tensor),
        ("score", c.c_int),
        ("has_scale", c.c_int),
        ("scale", c.c_double),
        ("w", Tensor),
        ("bias", Tensor),
        ("mask", c.c_void_p),
        ("executor", Executor),
        ("softcap", c.c_double),
        ("plan", c.c_void_p),
        ("alibi", Tensor),
        ("sinks", Tensor),
        ("dropout", c.c_double),
        ("seed", c.c_uint64),
        ("pages", Pages),
        ("weigh", c.c_int),
        ("score_mod", ScoreMod),
    ]


class Incoming(c.Structure):
    _fields_ = [(name, Tensor) for name in ("out", "lse", "d_out", "d_lse")]


class Gradients(c.Structure):
    _fields_ = [(f"d_{name}", Tensor) for name in ("q", "k", "v", "w", "bias", "alibi", "sinks")]


heed = c.CDLL(os.environ["HEED_LIBRARY"])
probes = c.CDLL(os.environ["HEED_PROBES"])
heed.heed_version.restype = heed.heed_target.restype = heed.heed_last_error.restype = c.c_char_p
heed.heed_dense.restype = heed.heed_none.restype = Tensor
heed.heed_dense.argtypes = [c.c_void_p, c.c_int] + [c.c_int64] * 4
heed.heed_plan_new.restype = c.c_void_p
heed.heed_plan_free.argtypes = heed.heed_mask_free.argtypes = [c.c_void_p]
for name in ["causal", "window", "lengths", "and"]:
    getattr(heed, f"heed_mask_{name}").restype = c.c_void_p
heed.heed_mask_window.argtypes = [c.c_int64, c.c_int64]
heed.heed_mask_lengths.argtypes = [c.c_void_p, c.c_size_t]
heed.heed_mask_and.argtypes = [c.c_void_p, c.c_void_p]
probes.heed_bench_steps.argtypes = [c.c_void_p] * 5 + [c.c_int64, c.c_void_p]
probes.heed_bench_calls.argtypes = [c.c_void_p, c.c_void_p, c.c_int64, c.c_void_p, c.c_int64, c.c_int64, c.c_void_p]


def dense(x: np.ndarray) -> Tensor:
    dtype = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[x.dtype.name]
    return heed.heed_dense(x.ctypes.data, DTYPES[dtype], *x.shape)


class Forward(Run):
    def __init__(self, w: Workload, x: Inputs, threads: int) -> None:
        self.threads = w.threads or threads
        self.out = np.empty_like(x.q)
        self.masks: list[int] = []
        self.plan = heed.heed_plan_new()
        self.mask = self._mask(w, x)
        self.kept = (x, copies(w, x.k, x.v))
        self.problems = (Attention * w.copies)()
        for a, (k, v) in zip(self.problems, self.kept[1]):
            a.size = c.sizeof(Attention)  # the library refuses another size than its own
            a.q, a.k, a.v = dense(x.q), dense(k), dense(v)
            if x.bias is not None:
                a.bias = dense(x.bias)
            if w.additive:
                a.score, a.w = 1, dense(x.w_additive)
            a.mask, a.softcap, a.plan, a.dropout = self.mask, w.softcap, self.plan, w.dropout
        self.output = (Tensor * 2)(dense(self.out), heed.heed_none())
        self.how = f"heed_forward, {heed.heed_target().decode()}"

    def _mask(self, w: Workload, x: Inputs) -> int | None:
        parts = []
        if w.window:
            parts.append(heed.heed_mask_window(w.window - 1, 0))
        elif w.causal:
            parts.append(heed.heed_mask_causal())
        if x.lengths is not None:
            parts.append(heed.heed_mask_lengths(x.lengths.ctypes.data, len(x.lengths)))
        self.masks = list(parts)
        whole = None
        for part in parts:
            whole = part if whole is None else heed.heed_mask_and(whole, part)
            self.masks.append(whole)
        return whole

    def _run(self, first: int, calls: int, inner: int) -> list[float]:
        if heed.heed_threads() != self.threads:
            heed.heed_set_threads(self.threads)
        times = (c.c_double * calls)()
        problems = c.byref(self.problems, first * c.sizeof(Attention))
        status = probes.heed_bench_calls(
            c.cast(heed.heed_forward, c.c_void_p),
            problems,
            len(self.problems) - first,
            c.byref(self.output),
            calls,
            inner,
            times,
        )
        if status != 0:
            raise Cannot(heed.heed_last_error().decode())
        return list(times)

    def call(self, i: int) -> None:
        self._run(i % len(self.problems), 1, 1)

    def seconds(self, calls: int) -> list[float]:
        # Calls of a few microseconds are timed a hundred at a time: the clock takes a while, too.
        inner = 100 if calls > 5000 else 1
        return [t for t in self._run(0, calls // inner, inner) for _ in range(inner)]

    def result(self) -> np.ndarray:
        return self.out

    def __del__(self) -> None:
        heed.heed_plan_free(self.plan)
        for mask in set(self.masks):
            heed.heed_mask_free(mask)


class Training(Forward):
    def __init__(self, w: Workload, x: Inputs, threads: int) -> None:
        super().__init__(w, x, threads)
        self.lse = np.empty((w.B, w.Hq, w.L, 1), np.float32)
        self.gradients = [np.empty_like(t) for t in (x.q, x.k, x.v)]
        if x.bias is not None:
            self.gradients.append(np.empty(x.bias.shape, np.float32))
        self.incoming = Incoming(dense(self.out), dense(self.lse), dense(x.d_out), heed.heed_none())
        self.wanted = Gradients(*map(dense, self.gradients[:3]))
        if x.bias is not None:
            self.wanted.d_bias = dense(self.gradients[3])
        if w.additive:  # what a layer needs, too; not compared
            self.d_w = np.empty(x.w_additive.shape, np.float32)
            self.wanted.d_w = dense(self.d_w)
        self.how = f"heed_forward and heed_backward, {heed.heed_target().decode()}"

    def _run(self, first: int, calls: int, inner: int) -> list[float]:
        if heed.heed_threads() != self.threads:
            heed.heed_set_threads(self.threads)
        times = (c.c_double * calls)()
        status = probes.heed_bench_steps(
            c.cast(heed.heed_forward, c.c_void_p),
            c.cast(heed.heed_backward, c.c_void_p),
            self.problems,
            c.byref(self.incoming),
            c.byref(self.wanted),
            calls,
            times,
        )
        if status != 0:
            raise Cannot(heed.heed_last_error().decode())
        return list(times)

    def result(self) -> list[np.ndarray]:
        return self.gradients


class Heed:
    trains = True

    waits = "Heed's idle threads look for work for 50 microseconds, then sleep"

    def __init__(self) -> None:
        self.threads = options().threads
        self.versions = {"heed": heed.heed_version().decode()}

    def prepare(self, w: Workload, x: Inputs) -> Run:
        return (Training if w.train else Forward)(w, x, self.threads)


if __name__ == "__main__":
    serve(Heed())
