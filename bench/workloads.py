"""The rows of the comparison: the problems, what they cost at least, and what Heed promises on them.

A row's floor is 4 * pairs * D flops at the machine's measured peak or the bytes of K and V at its measured bandwidth,
whichever takes longer; its share is that floor over Heed's time. A row for training is forward and backward together:
14 * pairs * D flops, since the backward has five products where the forward has two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

BYTES = {"f32": 4, "f16": 2, "bf16": 2}
SDPA = ("torch", "torch-math")  # which of the two PyTorch's operator takes is PyTorch's choice
COLD_BYTES = 256 << 20  # decode reads keys and values that no cache holds: calls go round copies that fill this


@dataclass(frozen=True)
class Workload:
    row: str
    B: int
    Hq: int
    Hkv: int
    L: int
    S: int
    D: int
    dtype: str = "f32"
    causal: bool = False  # the last query sees the last key
    window: int = 0  # the most keys a causal query sees, its own included; 0: all
    padded: bool = False  # each batch row has its own number of keys: key_lengths()
    bias: bool = False  # additive, one value per head and pair
    softcap: float = 0.0
    additive: bool = False  # scores of w . tanh(q + k), Bahdanau's
    train: bool = False  # forward and backward: the gradients of q, k, v, and of the bias if there is one
    dropout: float = 0.0  # of the weights
    cold: bool = False  # see COLD_BYTES
    threads: int = 0  # 0: what --threads says; a row with its own number is Heed's alone
    alone: bool = False  # no peers
    together: str = ""  # rows timed in the same rounds, because a target compares them

    # What is promised; None: nothing.
    share: float | None = None  # of the floor
    ratio: float | None = None  # the best peer's time over Heed's
    against: tuple[str, ...] = ()  # the peers that count for the ratio; none: all
    of_row: str = ""  # the row that the next two compare with
    speed: float | None = None  # at least this much of that row's speed
    points: float | None = None  # a share at most this far from that row's
    error: float | None = None  # at most this much of the fused PyTorch's error
    microseconds: float | None = None  # a call

    @property
    def what(self) -> str:
        heads = f"{self.Hq}" if self.Hq == self.Hkv else f"{self.Hq}/{self.Hkv}"
        parts = [f"{self.B}, {heads}, {self.L}, {self.S}, {self.D}", self.dtype]
        if self.causal:
            parts.append("causal")
        if self.window:
            parts.append(f"window {self.window}")
        if self.padded:
            parts.append("lengths")
        if self.bias:
            parts.append("bias")
        if self.additive:
            parts.append("additive")
        if self.dropout:
            parts.append(f"dropout {self.dropout:g}")
        if self.softcap:
            parts.append(f"softcap {self.softcap:g}")
        if self.threads:
            parts.append(f"{self.threads} thread")
        return " ".join(parts)

    def key_lengths(self) -> np.ndarray:
        """How many keys each batch row has: 16 to 64 of 64, the same in every run."""
        return (16 + 37 * np.arange(self.B) % 49) if self.padded else np.full(self.B, self.S)

    def spans(self) -> tuple[np.ndarray, np.ndarray]:
        """The first visible key and the one past the last, for each batch row and query: two arrays [B, L]."""
        last = np.arange(self.L) + self.S - self.L + 1 if self.causal else np.full(self.L, self.S)
        first = np.maximum(last - self.window, 0) if self.window else np.zeros_like(last)
        end = np.minimum(last[None, :], self.key_lengths()[:, None])
        return np.minimum(first[None, :], end), end

    def visible(self) -> np.ndarray:
        """The same as a dense mask, [B or 1, 1, L, S], true where a key is seen: for peers that need one."""
        first, end = self.spans()
        if not self.padded:
            first, end = first[:1], end[:1]
        if not self.causal:
            first, end = first[:, :1], end[:, :1]
        j = np.arange(self.S)
        return ((j >= first[..., None]) & (j < end[..., None]))[:, None]

    @property
    def pairs(self) -> int:
        first, end = self.spans()
        return int((end - first).sum()) * self.Hq

    @property
    def flops(self) -> int:
        return (14 if self.train else 4) * self.pairs * self.D

    @property
    def bytes(self) -> int:
        return 2 * self.B * self.Hkv * self.S * self.D * BYTES[self.dtype]

    @property
    def copies(self) -> int:
        return min(-(-COLD_BYTES // self.bytes), 64) if self.cold else 1

    def floor(self, peak: float, bandwidth: float) -> float:
        """Seconds below which no exact kernel gets on a machine of this many flops and bytes a second."""
        return max(self.flops / peak, self.bytes / bandwidth)


P1 = Workload("P1", 1, 16, 16, 1024, 1024, 64, share=0.84, ratio=1.3, together="P1")
P3 = Workload("P3", 1, 8, 8, 4096, 4096, 128, causal=True, share=0.88, ratio=1.6)
D1 = Workload("D1", 1, 32, 8, 1, 8192, 128, cold=True, share=0.82, ratio=2)
T8 = Workload("T8", 1, 1, 1, 8192, 8192, 64, train=True, alone=True, of_row="T8-1t", speed=1.85, together="T8")
T2 = Workload("T2", 2, 8, 8, 2048, 2048, 64, train=True, share=0.80, ratio=1.6, against=SDPA, together="T2")
D2 = Workload("D2", 8, 32, 8, 1, 2048, 128, cold=True, share=0.82, ratio=2)

ROWS = [
    P1,
    replace(P1, row="P1-f16", dtype="f16", share=None, ratio=None, of_row="P1", speed=0.93),
    replace(P1, row="P1-bf16", dtype="bf16", share=None, ratio=None, of_row="P1", speed=0.93),
    replace(P1, row="P1-1t", threads=1, alone=True, share=None, ratio=None, of_row="P1", points=0.03),
    replace(P1, row="P2", causal=True, share=0.80, ratio=1.9, together=""),
    P3,
    Workload("P4", 8, 12, 12, 197, 197, 64, share=0.74, ratio=1.5),
    Workload("P5", 32, 8, 8, 64, 64, 64, padded=True, share=0.52, ratio=2),
    Workload("P6", 1, 2, 2, 16384, 16384, 64, causal=True, share=0.82, ratio=1.6),
    Workload("P7", 1, 32, 8, 2048, 2048, 128, causal=True, share=0.88, ratio=1.6),
    Workload("P8", 1, 8, 8, 4096, 4096, 64, causal=True, window=256, share=0.70, ratio=4),
    replace(P3, row="P9", bias=True, softcap=30.0, share=0.72, ratio=2.5),
    D1,
    replace(D1, row="D1-f16", dtype="f16", share=0.76),
    replace(D1, row="D1-bf16", dtype="bf16", share=0.76),
    D2,
    replace(D2, row="D2-f16", dtype="f16", share=0.76),
    replace(D2, row="D2-bf16", dtype="bf16", share=0.76),
    Workload("D3", 1, 8, 1, 16, 4096, 128, cold=True, share=0.70, ratio=2),
    Workload("T1", 8, 8, 8, 512, 512, 64, causal=True, train=True, share=0.73, ratio=2, against=SDPA),
    T2,
    replace(T2, row="T7", dtype="bf16", share=None, ratio=1.5, of_row="T2", speed=0.9, error=0.5),
    Workload("T3", 1, 8, 8, 4096, 4096, 128, causal=True, train=True, share=0.80, ratio=2, against=SDPA),
    Workload("T4", 1, 2, 2, 8192, 8192, 64, causal=True, window=512, train=True, share=0.60, ratio=5, against=SDPA),
    replace(T2, row="T5", bias=True, share=0.50, ratio=3, together=""),
    Workload("T6", 32, 8, 8, 64, 64, 64, padded=True, dropout=0.1, train=True, share=0.45, ratio=2, against=SDPA),
    Workload("T6-cached", 4, 8, 8, 64, 64, 64, padded=True, dropout=0.1, train=True, alone=True),
    T8,
    replace(T8, row="T8-1t", threads=1, of_row="", speed=None),
    # Its flops are as if its scores were products, so that its share says nothing.
    Workload("A1", 32, 1, 1, 40, 40, 256, additive=True, train=True, ratio=3),
    Workload("small", 1, 1, 1, 8, 8, 64, alone=True, microseconds=2.0),
]

# --selftest: no times, only errors. Between them they use every option a row has.
SELFTEST = [
    Workload("self-1", 2, 4, 4, 33, 64, 64, padded=True),
    Workload("self-2", 1, 4, 2, 70, 70, 64, causal=True),
    Workload("self-3", 1, 4, 4, 70, 70, 64, causal=True, window=9),
    Workload("self-4", 1, 4, 4, 70, 70, 64, causal=True, bias=True, softcap=30.0),
    Workload("self-5", 2, 4, 2, 1, 50, 64, cold=True),
    Workload("self-6", 1, 4, 4, 33, 40, 64, dtype="f16"),
    Workload("self-7", 1, 4, 4, 33, 40, 64, dtype="bf16"),
    Workload("self-8", 2, 4, 4, 70, 70, 64, causal=True, train=True),
    Workload("self-9", 2, 4, 4, 70, 70, 64, causal=True, window=20, train=True, bias=True),
    Workload("self-10", 2, 4, 4, 33, 64, 64, padded=True, train=True, dropout=0.1),
    Workload("self-11", 2, 4, 4, 33, 64, 64, dtype="bf16", train=True),
    Workload("self-12", 2, 4, 4, 33, 40, 64, additive=True, train=True),
]

BY_NAME = {w.row: w for w in ROWS + SELFTEST}
