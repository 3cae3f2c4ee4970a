"""Attention as it is written down without a fused operator, softmax(scale Q K^T + mask) V, in PyTorch's own operators.

    python -m peers.torch_unfused --threads 2

The same expression in C++ calls the same LibTorch operators. Masks are made once, outside the timing; groups of heads are
folded into the rows of Q, which is kinder than repeating K and V.
"""

from __future__ import annotations

import numpy as np
import torch

from inputs import Inputs
from peers.protocol import Run, copies, options, serve
from peers.torch_sdpa import Training, array, float_mask, tensor
from workloads import Workload


class Unfused(Run):
    def __init__(self, w: Workload, x: Inputs) -> None:
        self.w = w
        # [B, Hkv, group * L, D]
        self.q = tensor(x.q).view(w.B, w.Hkv, -1, w.D) * w.D**-0.5
        self.kv = [(tensor(k).transpose(-1, -2), tensor(v)) for k, v in copies(w, x.k, x.v)]
        self.mask = None
        if w.causal or w.padded:
            self.mask = float_mask(w, self.q.dtype)[:, :, None]
        if x.bias is not None:
            bias = tensor(x.bias).view(1, w.Hkv, -1, w.L, w.S)
            self.mask = bias if self.mask is None else bias + self.mask
        self.out = self.q

    def call(self, i: int) -> None:
        w = self.w
        kt, v = self.kv[i % len(self.kv)]
        scores = self.q @ kt
        if w.softcap:
            scores.div_(w.softcap).tanh_().mul_(w.softcap)
        if self.mask is not None:
            scores.view(w.B, w.Hkv, -1, w.L, w.S).add_(self.mask)
        self.out = torch.softmax(scores, -1) @ v

    def result(self) -> np.ndarray:
        return array(self.out.view(self.w.B, self.w.Hq, self.w.L, self.w.D))


class UnfusedTraining(Training):
    """Through autograd, out of place as autograd wants it."""

    def __init__(self, w: Workload, x: Inputs) -> None:
        super().__init__(w, x)
        self.w_additive = tensor(x.w_additive).requires_grad_() if w.additive else None
        if self.w_additive is not None:
            self.inputs.append(self.w_additive)

    def forward(self) -> torch.Tensor:
        q, k, v = self.inputs[:3]
        if self.w_additive is not None:
            scores = (torch.tanh(q[..., :, None, :] + k[..., None, :, :]) * self.w_additive).sum(-1)
        else:
            scores = (q * self.w.D**-0.5) @ k.transpose(-1, -2)
        if self.bias is not None:
            scores = scores + self.bias
        if self.mask is not None:
            scores = scores + self.mask
        weights = torch.softmax(scores, -1)
        if self.w.dropout:
            weights = torch.nn.functional.dropout(weights, self.w.dropout)
        return weights @ v

    def result(self) -> list[np.ndarray]:
        gradients = super().result()
        return gradients if self.w_additive is None else gradients[:-1]  # as Heed's: those of q, k, v and the bias


class TorchUnfused:
    trains = True
    waits = "as peers/torch_sdpa.py"
    versions = {"torch": torch.__version__}

    def __init__(self) -> None:
        torch.set_num_threads(options().threads)
        torch.set_grad_enabled(False)

    def prepare(self, w: Workload, x: Inputs) -> Run:
        return (UnfusedTraining if w.train else Unfused)(w, x)


if __name__ == "__main__":
    serve(TorchUnfused())
