"""PyTorch's scaled_dot_product_attention, its fused CPU kernel or its `math` path; it is told which and may not choose.

    python -m peers.torch_sdpa --threads 2 --way fused

Lengths and windows go in as a dense float mask, which is what its users have: it has no lengths and no window.
"""

from __future__ import annotations

import numpy as np
import torch

from inputs import Inputs
from peers.protocol import Cannot, Run, copies, options, serve
from workloads import Workload


def tensor(x: np.ndarray) -> torch.Tensor:
    """The same memory as a tensor; numpy has no bfloat16 of its own, so that one goes through its bits."""
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def array(x: torch.Tensor) -> np.ndarray:
    return x.float().numpy()


def float_mask(w: Workload, dtype: torch.dtype) -> torch.Tensor:
    """0 where a key is seen, -inf elsewhere, [B or 1, 1, L or 1, S]."""
    return torch.zeros((), dtype=dtype).where(torch.from_numpy(w.visible()), torch.tensor(-torch.inf, dtype=dtype))


class Sdpa(Run):
    def __init__(self, w: Workload, x: Inputs) -> None:
        if w.additive:
            raise Cannot("scaled_dot_product_attention has no additive scores")
        if w.softcap:
            raise Cannot("scaled_dot_product_attention has no softcap")
        self.q = tensor(x.q)
        self.kv = [(tensor(k), tensor(v)) for k, v in copies(w, x.k, x.v)]
        self.options = {"enable_gqa": w.Hq != w.Hkv}
        if w.window or w.padded or w.bias or (w.causal and w.L != w.S):
            mask = float_mask(w, self.q.dtype)
            self.options["attn_mask"] = mask if x.bias is None else mask + tensor(x.bias)
            self.how = "dense mask"
        else:
            self.options["is_causal"] = w.causal
        self.out = self.q

    def call(self, i: int) -> None:
        k, v = self.kv[i % len(self.kv)]
        self.out = torch.nn.functional.scaled_dot_product_attention(self.q, k, v, **self.options)

    def result(self) -> np.ndarray:
        return array(self.out)


class Training(Run):
    """Forward and backward; gradients come back as autograd makes them. What a way to write attention adds is forward()."""

    def __init__(self, w: Workload, x: Inputs) -> None:
        self.w = w
        self.inputs = [tensor(t).requires_grad_() for t in (x.q, x.k, x.v)]
        self.d_out = tensor(x.d_out)
        self.mask = float_mask(w, self.d_out.dtype) if w.causal or w.padded else None
        self.bias = None if x.bias is None else tensor(x.bias).requires_grad_()
        if self.bias is not None:
            self.inputs.append(self.bias)
        self.gradients: tuple[torch.Tensor, ...] = ()

    def forward(self) -> torch.Tensor:
        raise NotImplementedError

    def call(self, i: int) -> None:
        with torch.enable_grad():
            self.gradients = torch.autograd.grad(self.forward(), self.inputs, self.d_out)

    def result(self) -> list[np.ndarray]:
        return [array(g) for g in self.gradients]


class SdpaTraining(Training):
    def __init__(self, w: Workload, x: Inputs) -> None:
        super().__init__(w, x)
        fused = Sdpa(w, x)  # refuses what it cannot do, and knows how to say the mask
        self.how, self.options = fused.how, fused.options | {"dropout_p": w.dropout}

    def forward(self) -> torch.Tensor:
        if self.bias is not None:
            self.options["attn_mask"] = self.bias if self.mask is None else self.bias + self.mask
        return torch.nn.functional.scaled_dot_product_attention(*self.inputs[:3], **self.options)


class Torch:
    trains = True
    waits = "libgomp's idle threads spin for about a millisecond, then sleep; the pause between turns is longer"
    versions = {"torch": torch.__version__}

    def __init__(self) -> None:
        asked = options("fused", "math")
        torch.set_num_threads(asked.threads)
        torch.set_grad_enabled(False)
        # These switches are named after CUDA and serve the CPU, too.
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_flash_sdp(asked.way == "fused")
        torch.backends.cuda.enable_math_sdp(asked.way == "math")

    def prepare(self, w: Workload, x: Inputs) -> Run:
        return (SdpaTraining if w.train else Sdpa)(w, x)


if __name__ == "__main__":
    serve(Torch())
