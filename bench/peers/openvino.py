"""OpenVINO's ScaledDotProductAttention operator (opset 13), in a model of one node for the CPU plugin.

    python -m peers.openvino --threads 2

Decode (rows whose keys lie cold in a cache) runs as in its users' models: K and V are a state of the model, to which a call
appends its L new keys; grouped heads are spread with a multiplication that the plugin folds into the operator. In the
other rows they are broadcast, which it does not fold. Precision hints are set to the row's dtype: by default the plugin
computes f32 models in bf16 where the processor has it, and keeps K and V in 8 bits.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import openvino as ov
from openvino import opset6
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo

from inputs import Inputs
from peers.protocol import Cannot, Run, copies, options, serve
from workloads import Workload

TYPES = {"f32": ov.Type.f32, "f16": ov.Type.f16, "bf16": ov.Type.bf16}


def tensor(x: np.ndarray) -> ov.Tensor:
    x = np.ascontiguousarray(x)
    if x.dtype == ml_dtypes.bfloat16:
        return ov.Tensor(x.view(np.uint16), ov.Shape(x.shape), ov.Type.bf16)
    return ov.Tensor(x, shared_memory=True)


def hints(w: Workload, threads: int) -> dict[str, object]:
    return {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        # The plugin has f16 arithmetic only where the processor has.
        "INFERENCE_PRECISION_HINT": "bf16" if w.dtype == "bf16" else "f32",
        "KV_CACHE_PRECISION": w.dtype,
        "ENABLE_CPU_PINNING": False,
    }


class Decode(Run):
    def __init__(self, w: Workload, x: Inputs, core: ov.Core, threads: int) -> None:
        self.w = w
        self.how = "cache as state" + ("" if w.dtype == "f32" else ", f32 queries")
        kind = ov.Type.f32
        group = op.constant(np.ones((1, 1, w.Hq // w.Hkv, 1, 1), np.float32))
        q = op.parameter([-1, w.Hq, -1, w.D], kind)
        new = [op.parameter([-1, w.Hkv, -1, w.D], kind) for _ in range(2)]
        beam = op.parameter([-1], ov.Type.i32)
        assigned, whole = [], []
        for name, x_new in zip("kv", new):
            info = VariableInfo()
            info.data_shape, info.data_type, info.variable_id = ov.PartialShape([-1, w.Hkv, -1, w.D]), kind, name
            state = Variable(info)
            empty = op.broadcast(op.constant(0.0, kind), op.constant([w.B, w.Hkv, 0, w.D], ov.Type.i64))
            past = op.gather(opset6.read_value(empty, state), beam, op.constant(0, ov.Type.i64))
            both = op.concat([past, x_new], 2)
            assigned.append(opset6.assign(both, state))
            wide = op.multiply(op.unsqueeze(both, op.constant(2, ov.Type.i64)), group)
            whole.append(op.reshape(wide, op.constant([0, w.Hq, -1, w.D], ov.Type.i64), True))
        node = op.scaled_dot_product_attention(q, *whole, causal=False)
        model = ov.Model([op.result(node)], assigned, [q, *new, beam])
        compiled = core.compile_model(model, "CPU", hints(w, threads))
        past = w.S - w.L
        self.kept = [np.ascontiguousarray(a[:, :, :past]) for a in (x.k, x.v)]  # the tensors only point at them
        self.past = [tensor(a) for a in self.kept]
        last = [a[:, :, past:].astype(np.float32) for a in (x.k, x.v)]
        self.given = [x.q.astype(np.float32), *last, np.arange(w.B, dtype=np.int32)]
        self.requests = [compiled.create_infer_request() for _ in range(w.copies)]
        for request in self.requests:
            for i, a in enumerate(self.given):
                request.set_input_tensor(i, ov.Tensor(a, shared_memory=True))
        self.last = self.requests[0]
        self.fill()

    def fill(self) -> None:
        for request in self.requests:
            for state in request.query_state():
                state.state = self.past[state.name == "v"]
        self.calls = 0

    def call(self, i: int) -> None:
        self.last = self.requests[i % len(self.requests)]
        self.last.infer()
        self.calls += 1

    def seconds(self, calls: int) -> list[float]:
        # Each call leaves its keys in the state; past a hundredth more of them, it starts anew.
        if self.calls * self.w.L * 100 > self.w.S * len(self.requests):
            self.fill()
        return super().seconds(calls)

    def result(self) -> np.ndarray:
        return self.last.get_output_tensor(0).data


class Sdpa(Run):
    def __init__(self, w: Workload, x: Inputs, core: ov.Core, threads: int) -> None:
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
        self.model = core.compile_model(ov.Model([op.result(node)], parameters), "CPU", hints(w, threads))
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
        if w.softcap:
            raise Cannot("ScaledDotProductAttention has no softcap")
        return (Decode if w.cold else Sdpa)(w, x, self.core, self.threads)


if __name__ == "__main__":
    serve(OpenVino())
