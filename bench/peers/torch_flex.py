"""PyTorch's FlexAttention: masks and score changes as Python functions, compiled for the CPU by Inductor.

    python -m peers.torch_flex --threads 2

It compiles a kernel for each row, outside the timing, with the machine's C++ compiler and Python's header files.
"""

from __future__ import annotations

import os

# Inductor would otherwise start as many compilers as there are cores, and keep them.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(os.environ.get("HEED_BENCH_LOGS", "/tmp"), "inductor"))

import numpy as np
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from inputs import Inputs
from peers.protocol import Run, copies, options, serve
from peers.torch_sdpa import array, tensor
from workloads import Workload


class Flex(Run):
    def __init__(self, w: Workload, x: Inputs) -> None:
        self.q = tensor(x.q)
        self.kv = [(tensor(k), tensor(v)) for k, v in copies(w, x.k, x.v)]
        self.options: dict[str, object] = {"enable_gqa": w.Hq != w.Hkv}
        offset, window, cap = w.S - w.L, w.window, w.softcap
        lengths = None if x.lengths is None else torch.from_numpy(x.lengths)
        bias = None if x.bias is None else tensor(x.bias)[0]

        def seen(b, h, i, j):
            ok = j <= i + offset if w.causal else j >= 0
            if window:
                ok = ok & (j > i + offset - window)
            return ok if lengths is None else ok & (j < lengths[b])

        def changed(score, b, h, i, j):
            if cap:
                score = cap * torch.tanh(score / cap)
            return score if bias is None else score + bias[h, i, j]

        if w.causal or lengths is not None:
            batch = None if lengths is None else w.B
            self.options["block_mask"] = create_block_mask(seen, batch, None, w.L, w.S, device="cpu")
        if cap or bias is not None:
            self.options["score_mod"] = changed
        torch._dynamo.reset()
        self.attend = torch.compile(flex_attention, dynamic=False)
        self.out = self.q
        self.call(0)

    def call(self, i: int) -> None:
        k, v = self.kv[i % len(self.kv)]
        self.out = self.attend(self.q, k, v, **self.options)

    def result(self) -> np.ndarray:
        return array(self.out)


class TorchFlex:
    waits = "as peers/torch_sdpa.py"
    versions = {"torch": torch.__version__}

    def __init__(self) -> None:
        torch.set_num_threads(options().threads)
        torch.set_grad_enabled(False)

    def prepare(self, w: Workload, x: Inputs) -> Run:
        return Flex(w, x)


if __name__ == "__main__":
    serve(TorchFlex())
