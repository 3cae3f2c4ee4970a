"""JAX's jax.nn.dot_product_attention, compiled by XLA for the CPU.

    python -m peers.jax_dpa --threads 2

XLA takes as many threads as the process has cores, so bench/compare starts it on that many.
"""

from __future__ import annotations

import functools
import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from inputs import Inputs
from peers.protocol import Cannot, Run, copies, options, serve
from workloads import Workload


class DotProductAttention(Run):
    def __init__(self, w: Workload, x: Inputs) -> None:
        if w.softcap:
            raise Cannot("dot_product_attention has no softcap")
        if w.dtype == "f16":
            raise Cannot(
                "XLA has no product of f16 for the CPU that adds in f32, and dot_product_attention asks for one"
            )

        def own(a: np.ndarray) -> jax.Array:  # [B, length, heads, D], as it wants them
            return jax.device_put(a.swapaxes(1, 2)).block_until_ready()

        self.q = own(x.q)
        self.kv = [(own(k), own(v)) for k, v in copies(w, x.k, x.v)]
        self.bias = None if x.bias is None else jax.device_put(x.bias)
        self.lengths = None if x.lengths is None else jax.device_put(x.lengths.astype(np.int32))
        mask = None
        if w.causal and w.L != w.S:
            mask, self.how = jax.device_put(w.visible()), "dense mask"
        self.attend = jax.jit(
            functools.partial(
                jax.nn.dot_product_attention,
                mask=mask,
                is_causal=w.causal and w.L == w.S,
                local_window_size=(w.window - 1, 0) if w.window else None,
                implementation="xla",
            )
        )
        self.out = self.q

    def call(self, i: int) -> None:
        k, v = self.kv[i % len(self.kv)]
        self.out = self.attend(self.q, k, v, bias=self.bias, key_value_seq_lengths=self.lengths)
        self.out.block_until_ready()

    def result(self) -> np.ndarray:
        return np.asarray(self.out).astype(np.float32).swapaxes(1, 2)


class Jax:
    waits = "XLA's idle threads spin for microseconds, then sleep"
    versions = {"jax": jax.__version__}

    def __init__(self) -> None:
        options()

    def prepare(self, w: Workload, x: Inputs) -> Run:
        return DotProductAttention(w, x)


if __name__ == "__main__":
    serve(Jax())
