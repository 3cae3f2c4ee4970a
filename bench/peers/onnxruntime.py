"""ONNX Runtime's three attention operators, each in a model of one node.

    python -m peers.onnxruntime --threads 2 --way gqa

    mha        com.microsoft MultiHeadAttention
    gqa        com.microsoft GroupQueryAttention: causal by definition; decode appends to a cache that it shares with its output
    attention  ai.onnx Attention, version 23, or 24 where there are key lengths

Inputs and outputs are bound once; a model with a copy of K and V is bound once for each copy.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from inputs import Inputs
from peers.protocol import Cannot, Run, copies, options, serve
from workloads import Workload

TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


def value(x: np.ndarray) -> ort.OrtValue:
    x = np.ascontiguousarray(x)
    if x.dtype == ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(x.view(np.uint16), TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(x)


def packed(x: np.ndarray) -> np.ndarray:
    """[B, heads, length, D] to [B, length, heads * D]."""
    return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(x.shape[0], x.shape[2], -1)


class Node(Run):
    """One node with its inputs and outputs bound. An input that is "" is left out."""

    def __init__(
        self,
        w: Workload,
        session: ort.SessionOptions,
        op: tuple[str, str, int],
        inputs: dict[str, np.ndarray],
        per_copy: list[dict[str, np.ndarray]],
        outputs: dict[str, np.ndarray],
        order: list[str],
        shared: dict[str, str],  # output name -> the input whose memory it is
        **attributes: object,
    ) -> None:
        name, domain, version = op
        self.w, self.outputs = w, outputs
        everything = inputs | per_copy[0]

        def info(names: list[str], arrays: dict[str, np.ndarray]) -> list:
            return [helper.make_tensor_value_info(n, TYPES[arrays[n].dtype.name], arrays[n].shape) for n in names]

        names = list(outputs) + list(shared)
        graph = helper.make_graph(
            [helper.make_node(name, order, names, domain=domain, **attributes)],
            name,
            info([n for n in order if n], everything),
            info(list(outputs), outputs) + info(list(shared), {o: everything[i] for o, i in shared.items()}),
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", max(version, 21)), helper.make_opsetid("com.microsoft", 1)],
            ir_version=10,
        )
        self.session = ort.InferenceSession(model.SerializeToString(), session, providers=["CPUExecutionProvider"])
        self.kept = {n: value(x) for n, x in inputs.items()}
        self.out = {n: value(x) for n, x in outputs.items()}
        self.bindings = []
        for own in per_copy:
            values = self.kept | {n: value(x) for n, x in own.items()}
            binding = self.session.io_binding()
            for n in order:
                if n:
                    binding.bind_ortvalue_input(n, values[n])
            for n, v in self.out.items():
                binding.bind_ortvalue_output(n, v)
            for n, i in shared.items():
                binding.bind_ortvalue_output(n, values[i])
            self.bindings.append((binding, values))

    def call(self, i: int) -> None:
        self.session.run_with_iobinding(self.bindings[i % len(self.bindings)][0])

    def result(self) -> np.ndarray:
        w = self.w
        out = next(iter(self.out.values())).numpy()
        return out if out.ndim == 4 else out.reshape(w.B, w.L, w.Hq, w.D).swapaxes(1, 2)


def mha(w: Workload, x: Inputs, session: ort.SessionOptions) -> Run:
    if w.Hq != w.Hkv:
        raise Cannot("MultiHeadAttention has no grouped heads")
    if w.softcap:
        raise Cannot("MultiHeadAttention has no softcap")
    inputs = {"q": packed(x.q)}
    order = ["q", "k", "v"]
    bias = x.bias
    how = "MultiHeadAttention"
    causal = w.causal and w.L == w.S and not w.window
    if w.window or (w.causal and not causal):
        dense = np.where(w.visible(), 0, -np.inf).astype(x.q.dtype)
        bias = dense if bias is None else bias + dense
        how += ", dense mask"
    if w.padded:
        inputs["lengths"] = w.key_lengths().astype(np.int32)
        order += ["", "lengths"]
    if bias is not None:
        inputs["bias"] = bias
        order += [""] * (5 - len(order)) + ["bias"]
    kv = [{"k": packed(k), "v": packed(v)} for k, v in copies(w, x.k, x.v)]
    run = Node(
        w,
        session,
        ("MultiHeadAttention", "com.microsoft", 1),
        inputs,
        kv,
        {"out": np.empty_like(inputs["q"])},
        order,
        {},
        num_heads=w.Hq,
        unidirectional=int(causal),
    )
    run.how = how
    return run


def gqa(w: Workload, x: Inputs, session: ort.SessionOptions) -> Run:
    if not w.causal and w.L > 1:
        raise Cannot("GroupQueryAttention is causal")
    past = w.S - w.L
    inputs = {
        "q": packed(x.q),
        "k": packed(x.k[:, :, past:]),
        "v": packed(x.v[:, :, past:]),
        "seqlens": np.full(w.B, w.S - 1, np.int32),
        "total": np.array(w.S, np.int32),
    }
    order = ["q", "k", "v", "past_k", "past_v", "seqlens", "total"]
    if x.bias is not None:
        inputs["bias"] = x.bias
        order += [""] * (10 - len(order)) + ["bias"]
    attributes: dict[str, object] = {"num_heads": w.Hq, "kv_num_heads": w.Hkv}
    if w.window:
        attributes["local_window_size"] = w.window
    if w.softcap:
        attributes["softcap"] = w.softcap
    run = Node(
        w,
        session,
        ("GroupQueryAttention", "com.microsoft", 1),
        inputs,
        # The cache's last L places are written anew by each call.
        [{"past_k": k, "past_v": v} for k, v in copies(w, x.k, x.v)],
        {"out": np.empty_like(inputs["q"])},
        order,
        {"present_k": "past_k", "present_v": "past_v"},
        **attributes,
    )
    run.how = "GroupQueryAttention"
    return run


def attention(w: Workload, x: Inputs, session: ort.SessionOptions) -> Run:
    version = 24 if w.padded else 23
    inputs = {"q": x.q}
    order = ["q", "k", "v"]
    how = f"Attention-{version}"
    bias = x.bias
    causal = w.causal and w.L == w.S and not w.window
    if w.window or (w.causal and not causal):
        dense = np.where(w.visible(), 0, -np.inf).astype(x.q.dtype)
        bias = dense if bias is None else bias + dense
        how += ", dense mask"
    if bias is not None:
        inputs["mask"] = bias
        order += ["mask"]
    if w.padded:
        inputs["lengths"] = w.key_lengths().astype(np.int64)
        order += [""] * (6 - len(order)) + ["lengths"]
    attributes: dict[str, object] = {"is_causal": int(causal)}
    if w.softcap:
        attributes["softcap"] = w.softcap
    run = Node(
        w,
        session,
        ("Attention", "", version),
        inputs,
        [{"k": k, "v": v} for k, v in copies(w, x.k, x.v)],
        {"out": np.empty_like(x.q)},
        order,
        {},
        **attributes,
    )
    run.how = how
    return run


class OnnxRuntime:
    waits = "idle threads may spin during a run (which is faster), but are told to stop at its end"
    versions = {"onnxruntime": ort.__version__}

    def __init__(self) -> None:
        asked = options("mha", "gqa", "attention")
        self.way = {"mha": mha, "gqa": gqa, "attention": attention}[asked.way]
        self.session = ort.SessionOptions()
        self.session.intra_op_num_threads = asked.threads
        self.session.inter_op_num_threads = 1
        self.session.log_severity_level = 3
        self.session.add_session_config_entry("session.force_spinning_stop", "1")

    def prepare(self, w: Workload, x: Inputs) -> Run:
        if w.dtype == "bf16":
            raise Cannot("ONNX Runtime's operators for the CPU have no bf16")
        return self.way(w, x, self.session)


if __name__ == "__main__":
    serve(OnnxRuntime())
