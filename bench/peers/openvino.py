"""OpenVINO's ScaledDotProductAttention operator (opset 13), in a model of one node for the CPU plugin.

    python -m peers.openvino --threads 2

Grouped heads go in as its users' models have them: K and V broadcast along a new axis, which the plugin folds into the
operator where it can. Precision hints are set to the row's dtype: by default the plugin computes f32 models in bf16 where the
processor has it.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import openvino as ov
from openvino import opset13 as op

from inputs import Inputs
from peers.protocol import Cannot, Run, copies, options, serve
from workloads import Workload

TYPES = {"f32": ov.Type.f32, "f16": ov.Type.f16, "bf16": ov.Type.bf16}


def tensor(x: np.ndarray) -> ov.Tensor:
    x = np.ascontiguousarray(x)
    if x.dtype == ml_dtypes.bfloat16:
        return ov.Tensor(x.view(np.uint16), ov.Shape(x.shape), ov.Type.bf16)
    return ov.Tensor(x, shared_memory=True)


class Sdpa(Run):
    def __init__(self, w: Workload, x: Inputs, core: ov.Core, threads: int) -> None:
        if w.softcap:
            raise Cannot("ScaledDotProductAttention has no softcap")
        kind = TYPES[w.dtype]

        def grouped(node: ov.Node) -> ov.Node:
            if w.Hq == w.Hkv:
                return node
            wide = op.broadcast(
                op.unsqueeze(node, op.constant(2, ov.Type.i64)),
                op.constant([w.B, w.Hkv, w.Hq // w.Hkv, w.S, w.D], ov.Type.i64),
            )
            return op.reshape(wide, op.constant([0, w.Hq, w.S, w.D], ov.Type.i64), True)

        q = op.parameter([w.B, w.Hq, w.L, w.D], kind)
        k, v = (op.parameter([w.B, w.Hkv, w.S, w.D], kind) for _ in range(2))
        parameters, values = [q, k, v], [x.q]
        causal = w.causal and w.L == w.S and not w.window
        dense = None
        if w.window or w.padded or (w.causal and not causal):
            dense = np.where(w.visible(), 0, -np.inf).astype(x.q.dtype)
            self.how = "dense mask"
        if x.bias is not None:
            dense = x.bias if dense is None else x.bias + dense
        extra = []
        if dense is not None:
            mask = op.parameter(list(dense.shape), kind)
            parameters.append(mask)
            extra = [mask]
        node = op.scaled_dot_product_attention(q, grouped(k), grouped(v), *extra, causal=causal)
        self.model = core.compile_model(
            ov.Model([op.result(node)], parameters),
            "CPU",
            {
                "INFERENCE_NUM_THREADS": threads,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": kind if w.dtype != "f16" else ov.Type.f32,
                "ENABLE_CPU_PINNING": False,
            },
        )
        self.requests = []
        for own in copies(w, x.k, x.v):
            request = self.model.create_infer_request()
            given = [*values, *own] + ([dense] if dense is not None else [])
            for i, a in enumerate(given):
                request.set_input_tensor(i, tensor(a))
            self.requests.append((request, given))
        self.last = self.requests[0][0]

    def call(self, i: int) -> None:
        self.last = self.requests[i % len(self.requests)][0]
        self.last.infer()

    def result(self) -> np.ndarray:
        out = self.last.get_output_tensor(0)
        bits = out.element_type == ov.Type.bf16  # which numpy has not: it gets the bits under another type's name
        return out.data.view(ml_dtypes.bfloat16).astype(np.float32) if bits else out.data


class OpenVino:
    waits = "oneTBB's idle threads sleep"
    versions = {"openvino": ov.__version__}

    def __init__(self) -> None:
        self.threads = options().threads
        self.core = ov.Core()

    def prepare(self, w: Workload, x: Inputs) -> Run:
        return Sdpa(w, x, self.core, self.threads)


if __name__ == "__main__":
    serve(OpenVino())
