#!/usr/bin/env python3
"""Makes goldens.txt, what tests/semantics_test.cc compares with: attention as other libraries compute it, case by case.

    KERAS_BACKEND=torch python3 tests/data/goldens.py      (torch 2.13, keras 3.15, transformers 5.24)

A case is named, says the call it was made by, which is run from that very text, and lists the results. Inputs are not in
the file: they are numbers(seed, shape), a formula of integers that the test repeats, of which every value is exact in
f32. All is computed in float64 except where a case says float32.
"""
import os
import pathlib
import sys
import warnings

os.environ.setdefault("KERAS_BACKEND", "torch")
warnings.simplefilter("ignore")
import keras  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import transformers  # noqa: E402
from torch.nn.attention.bias import causal_lower_right  # noqa: E402
from torch.nn.attention.flex_attention import create_block_mask, flex_attention  # noqa: E402
from transformers.models.t5.modeling_t5 import T5Attention  # noqa: E402

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
HERE = pathlib.Path(__file__).parent
lines = [f"# made by goldens.py: torch {torch.__version__}, keras {keras.__version__}, "
         f"transformers {transformers.__version__}"]


def numbers(seed, *shape):
    """Numbers in [-2, 2), steps of 1/1024."""
    n = 1
    for size in shape:
        n *= size
    values = []
    for i in range(n):
        h = (i * 2654435761 + seed * 40503 + 12345) % 2**32
        h ^= h >> 15
        h = h * 2246822519 % 2**32
        h ^= h >> 13
        values.append(((h >> 20) - 2048) / 1024)
    return torch.tensor(values).reshape(shape)


def visible(seed, *shape):
    return numbers(seed, *shape) > -1


def hidden(seed, *shape):
    return ~visible(seed, *shape)


def case(name, call, **results):
    lines.append(f"case {name}")
    lines.append(f"call {call}")
    for what, values in results.items():
        values = torch.as_tensor(values).detach().to(torch.float64).reshape(-1).tolist()
        lines.append(what + " " + " ".join(f"{x:.7f}".rstrip("0") for x in values))


# ---- torch.nn.functional.scaled_dot_product_attention ----

def sdpa(name, call, L=5, S=7, Hq=2, Hkv=2, gradients=False, **extra):
    q, k, v = numbers(1, 2, Hq, L, 8), numbers(2, 2, Hkv, S, 8), numbers(3, 2, Hkv, S, 2)
    names = {"q": q, "k": k, "v": v, "mask": None, **extra}
    wanted = [x for x in ("q", "k", "v", "mask") if gradients and names[x] is not None]
    for x in wanted:
        names[x].requires_grad_()
    out = eval(call, {**globals(), **names, "sdpa": F.scaled_dot_product_attention, "L": L, "S": S})
    results = {"out": out}
    if gradients:
        out.backward(numbers(4, *out.shape))
        for x in wanted:
            results["d_bias" if x == "mask" else "d_" + x] = names[x].grad
    case(name, call, **results)


sdpa("sdpa_plain", "sdpa(q, k, v)", gradients=True)
for bits in range(16):
    shape = [n if bits >> axis & 1 else 1 for axis, n in enumerate((2, 2, 5, 7))]
    sizes = ", ".join(map(str, shape))
    tag = "x".join(map(str, shape))
    sdpa(f"sdpa_bool_{tag}", f"sdpa(q, k, v, attn_mask=visible(5, {sizes}))")
    sdpa(f"sdpa_float_{tag}", f"sdpa(q, k, v, attn_mask=numbers(5, {sizes}))")
sdpa("sdpa_bool_2d", "sdpa(q, k, v, attn_mask=visible(6, L, S))")
sdpa("sdpa_float_2d", "sdpa(q, k, v, attn_mask=numbers(6, L, S))")
sdpa("sdpa_float_inf", "sdpa(q, k, v, attn_mask=numbers(6, L, S).masked_fill(hidden(7, L, S), float('-inf')))")
sdpa("sdpa_causal_wide", "sdpa(q, k, v, is_causal=True)", gradients=True)
sdpa("sdpa_causal_tall", "sdpa(q, k, v, is_causal=True)", L=7, S=5)
sdpa("sdpa_lower_right_wide", "sdpa(q, k, v, attn_mask=causal_lower_right(L, S))")
sdpa("sdpa_lower_right_tall", "sdpa(q, k, v, attn_mask=torch.ones(L, S, dtype=torch.bool).tril(S - L))", L=7, S=5,
     gradients=True)
sdpa("sdpa_scale", "sdpa(q, k, v, scale=0.25)")
sdpa("sdpa_negative_scale", "sdpa(q, k, v, scale=-0.75, is_causal=True)", gradients=True)
sdpa("sdpa_gqa", "sdpa(q, k, v, enable_gqa=True)", Hq=6, Hkv=2, gradients=True)
sdpa("sdpa_no_key", "sdpa(q, k, v, attn_mask=(torch.arange(L) % 4 != 0)[:, None] & visible(6, L, S))", gradients=True)
sdpa("sdpa_mask_gradient", "sdpa(q, k, v, attn_mask=mask)", gradients=True, mask=numbers(5, 2, 2, 5, 7))
sdpa("sdpa_mask_gradient_heads", "sdpa(q, k, v, attn_mask=mask)", gradients=True, mask=numbers(5, 1, 2, 5, 7))
sdpa("sdpa_mask_gradient_keys", "sdpa(q, k, v, attn_mask=mask)", gradients=True, mask=numbers(5, 2, 1, 1, 7))
sdpa("sdpa_mask_gradient_2d", "sdpa(q, k, v, attn_mask=mask)", gradients=True, mask=numbers(5, 5, 7))


# ---- torch.nn.attention.flex_attention ----

def flex(name, mask=None, score=None, L=16, S=16, Hq=2, Hkv=1, D=8, Dv=2, inputs=None, scale=None, **extra):
    B = 2 if any(x in f"{mask} {score}" for x in ("[b]", "[b,")) else 1
    q, k, v = numbers(1, B, Hq, L, D), numbers(2, B, Hkv, S, D), numbers(3, B, Hkv, S, Dv)
    if inputs:
        q, k, v = inputs(q, k, v)
    names = {**extra, "L": L, "S": S, "H": Hq}

    def mod(arguments, text):  # the names in a closure: flex_attention traces functions, and does not see eval's globals
        return text and eval(f"lambda {', '.join(names)}: lambda {arguments}: {text}")(**names)

    mask_mod, score_mod = mod("b, h, q, k", mask), mod("s, b, h, q, k", score)
    block_mask = create_block_mask(mask_mod, B, Hq, L, S, device="cpu") if mask else None
    out, lse = flex_attention(q, k, v, score_mod=score_mod, block_mask=block_mask, scale=scale, enable_gqa=Hq != Hkv,
                              return_lse=True)
    case(name, "; ".join(filter(None, [mask, score and "s → " + score])), out=out, lse=lse)


documents = torch.tensor([0] * 3 + [1] * 7 + [2] * 6)
flex("causal", "q >= k")
flex("inverse_causal", "q <= k")
flex("sliding_attn_gym", "(q >= k) & (q - k <= 3)")
flex("sliding_keras", "(q >= k) & (q - k < 3)")
flex("sliding_keras_both", "abs(q - k) < 3")
flex("window_onnx", "(q + S - L - 4 <= k) & (k <= q + S - L + 1)", L=10)
flex("dilated", "(abs(q - k) <= 6) & (abs(q - k) % 3 == 0)")
flex("prefix_lm", "(k < 5) | (q >= k)")
flex("prefix_per_batch", "((q <= n[b]) & (k <= n[b])) | (q >= k)", n=torch.tensor([4, 9]))
flex("padding", "k < n[b]", n=torch.tensor([11, 0]))
flex("document", "doc[q] == doc[k]", doc=documents)
flex("document_causal", "(doc[q] == doc[k]) & (q - start[doc[q]] >= k - start[doc[k]])", doc=documents,
     start=torch.tensor([0, 3, 10]))
flex("document_window", "(doc[q] == doc[k]) & (abs(q - k) <= 2)", doc=documents)
flex("batchify", "(q // 4 == k // 4) & (q % 4 >= k % 4)")
flex("longformer", "(abs(q - k) <= 2) | (q == 0) | (q == 7) | (k == 0) | (k == 7)")
flex("longformer_dilated", "((abs(q - k) <= 6) & (abs(q - k) % 2 == 0)) | (q == 0) | (k == 0)")
flex("bigbird", "(abs(q - k) <= 1) | (q == 0) | (k == 0) | (k // 4 == random[q // 4])",
     random=torch.tensor([2, 3, 0, 1]))
flex("strided", "(q >= k) & ((q - k < 4) | ((q - k) % 4 == 0))")
flex("fixed", "(q >= k) & ((q // 4 == k // 4) | (k % 4 >= 3))")
flex("natten_2d", "((q // 4).clamp(1, 2) - k // 4).abs().le(1) & ((q % 4).clamp(1, 2) - k % 4).abs().le(1)")
flex("natten_2d_3x6", "((q // 6).clamp(1, 1) - k // 6).abs().le(1) & ((q % 6).clamp(2, 3) - k % 6).abs().le(2)",
     L=18, S=18)
flex("natten_2d_attn_gym_6x3", "((q // 3).clamp(1, 1) - k // 3).abs().le(1) & ((q % 3).clamp(1, 1) - k % 3).abs().le(1)",
     L=18, S=18)
flex("natten_3d", "((q // 6).clamp(1, 1) - k // 6).abs().le(1) & ((q // 2 % 3).clamp(1, 1) - k // 2 % 3).abs().le(1)"
     " & (q % 2 == k % 2)", L=18, S=18)
flex("natten_tiled", "(y[q].clamp(1, 2) - y[k]).abs().le(1) & (x[q].clamp(1, 2) - x[k]).abs().le(1)",
     y=torch.tensor([i // 8 * 2 + i // 2 % 2 for i in range(16)]),
     x=torch.tensor([i // 4 % 2 * 2 + i % 2 for i in range(16)]))
flex("natten_morton", "(y[q].clamp(1, 2) - y[k]).abs().le(1) & (x[q].clamp(1, 2) - x[k]).abs().le(1)",
     y=torch.tensor([(i >> 1 & 1) | (i >> 2 & 2) for i in range(16)]),
     x=torch.tensor([(i & 1) | (i >> 1 & 2) for i in range(16)]))
# Sliding tiles: 3 x 4 tiles of 4 tokens, a kernel of 3 x 2 tiles: one left and one right of the middle, one left and none.
STA = ("((q // 16).clamp(1, 1) - k // 16 <= 1) & (k // 16 - (q // 16).clamp(1, 1) <= 1)"
       " & ((q // 4 % 4).clamp(1, 3) - k // 4 % 4 <= 1) & (k // 4 % 4 - (q // 4 % 4).clamp(1, 3) <= 0)")
flex("sliding_tile", STA, L=48, S=48)
flex("sliding_tile_text", f"((q < 48) & (k < 48) & {STA}) | (q >= 48) | (k >= 48)", L=50, S=50)
flex("videogen_spatial", "(q < 2) | (k < 2) | (abs(q - k) < int(0.5 * 16 / 4) * 4)")
flex("videogen_spatial_sink", "(q < 2) | (k < 2 + 4) | (abs(q - k) < int(0.3 * 16 / 4) * 4)")
flex("videogen_temporal", "(q < 2) | (k < 2) | (abs((q - 2) % 7 - (k - 2) % 7) < 0.5 * 7 / 2)")
flex("flamingo", "(start[k // 4] <= q) & (q < end[k // 4])", L=10, S=12, start=torch.tensor([2, 6, 9]),
     end=torch.tensor([6, 9, 10]))
flex("streaming_llm", "(q >= k) & ((k < 2) | (q - k <= 3))")
flex("causal_offset", "q + 12 >= k", L=4)
# Pages: a pool of 4 pages of 16 keys, which all sequences share; logical[b][page], -1: none of sequence b's.
logical = torch.tensor([[-1, 1, -1, 0], [0, -1, 1, -1]])
pool = (lambda q, k, v: (q, k[:1], v[:1]))
flex("paged", "(logical[b, k // 16] >= 0) & (logical[b, k // 16] * 16 + k % 16 <= q + keys[b] - L)", L=4, S=64,
     inputs=pool, logical=logical, keys=torch.tensor([20, 32]))

flex("identity", score="s")
flex("twice", score="s * 2")
flex("square", "q >= k", score="s * s")
flex("alibi", score="s + 2 ** (-8 * (h + 1) / H) * (k - q)", Hq=4)
flex("softcap", score="1.5 * torch.tanh(s / 1.5)")
flex("relative_offset", score="s + (q - k)")
flex("relative_table", score="s + T[q - k + S]", T=numbers(5, 33))
flex("relative_table_heads", score="s + T[h, q - k + S]", L=10, T=numbers(5, 2, 33))
flex("t5_bias", score="s + T[bucket[q, k], h]", T=numbers(5, 8, 2), bucket=T5Attention._relative_position_bucket(
    torch.arange(16)[None, :] - torch.arange(16)[:, None], True, 8, 12))
flex("t5_bias_decoder", "q >= k", score="s + T[bucket[q, k], h]", T=numbers(5, 8, 2),
     bucket=T5Attention._relative_position_bucket(torch.arange(16)[None, :] - torch.arange(16)[:, None], False, 8, 12))
flex("swin", score="s + T[h, (q // 4 - k // 4 + 3) * 7 + q % 4 - k % 4 + 3]", T=numbers(5, 2, 49))
flex("bias_qk", score="s + A[q, k]", A=numbers(5, 16, 16))
flex("bias_hqk", score="s + A[h, q, k]", A=numbers(5, 2, 16, 16))
flex("bias_bhqk", score="s + A[b, h, q, k]", A=numbers(5, 2, 2, 16, 16))
flex("bias_key", score="s + A[k]", A=numbers(5, 16))
flex("bias_query", score="s + A[q]", A=numbers(5, 16))
flex("bias_head", score="s + A[h]", A=numbers(5, 2))
flex("bias_batch", score="s + A[b]", A=numbers(5, 2))
flex("head_gate", score="s * G[h]", G=numbers(5, 2))
flex("key_weight", score="s * w[k]", w=numbers(5, 16))
flex("silu", score="F.silu(s)")
flex("cosine", score="s * tau[h]", tau=numbers(5, 2), scale=1.0,
     inputs=lambda q, k, v: (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v))
flex("mla_rope", "q >= k", score="s + 0.3 * (qr[b, h, q] * kr[b, 0, k]).sum()", qr=numbers(5, 2, 2, 16, 4),
     kr=numbers(6, 2, 1, 16, 4), scale=0.3)
flex("softcap_then_alibi", "q >= k", score="2 * torch.tanh(s / 2) + 2.0 ** (-4 * (h + 1)) * (k - q)")
flex("paged_alibi", "(logical[b, k // 16] >= 0) & (logical[b, k // 16] * 16 + k % 16 <= q + keys[b] - L)",
     score="s + 0.25 * (logical[b, k // 16] * 16 + k % 16 - (q + keys[b] - L))", L=4, S=64, inputs=pool,
     logical=logical, keys=torch.tensor([20, 32]))


# ---- keras.layers.Attention and AdditiveAttention: without heads; called with [query, value, key] ----

def keras_layer(name, call, weights=(), dtype="float64", arguments="", **how):
    q, k, v = numbers(1, 2, 5, 8), numbers(2, 2, 7, 8), numbers(3, 2, 7, 2)
    q, k, v = (x.to(getattr(torch, dtype)) for x in (q, k, v))
    layer = eval(call, {**globals(), "Attention": lambda **a: keras.layers.Attention(dtype=dtype, **a),
                        "AdditiveAttention": lambda **a: keras.layers.AdditiveAttention(dtype=dtype, **a)})
    layer.build([q.shape, v.shape, k.shape])
    assert len(layer.weights) == len(weights), [w.path for w in layer.weights]
    layer.set_weights([x.numpy() for x in weights])
    out, scores = eval(f"layer([q, v, k], return_attention_scores=True, {arguments})",
                       {**globals(), **how, "layer": layer, "q": q, "k": k, "v": v})
    text = f"{call}([q, v, k]{', ' + arguments if arguments else ''})"
    case("keras_" + name, text + (" in float32" if dtype == "float32" else ""), out=out, weights=scores)


one = torch.tensor
keras_layer("dot", "Attention()")
keras_layer("dot_scale", "Attention(use_scale=True)", [one(0.75)])
keras_layer("concat", "Attention(score_mode='concat')", [one(0.5)])
keras_layer("concat_scale", "Attention(score_mode='concat', use_scale=True)", [one(0.75), one(0.5)])
keras_layer("dropout_0", "Attention(dropout=0.0)", arguments="training=True")
keras_layer("value_mask", "Attention()", arguments="mask=[None, visible(6, 2, 7)]")
keras_layer("value_mask_3d", "Attention()", arguments="mask=[None, visible(6, 2, 5, 7)]")
keras_layer("query_mask", "Attention()", arguments="mask=[visible(7, 2, 5), visible(6, 2, 7)]")
keras_layer("causal", "Attention()", arguments="use_causal_mask=True")
keras_layer("causal_value_mask", "Attention()", arguments="mask=[None, torch.arange(7) < lengths[:, None]], "
            "use_causal_mask=True", lengths=torch.tensor([3, 6]))
keras_layer("nothing_visible", "Attention()", arguments="mask=[None, torch.zeros(2, 7, dtype=torch.bool)]",
            dtype="float32")
keras_layer("additive", "AdditiveAttention()", [numbers(5, 8)])
keras_layer("additive_no_scale", "AdditiveAttention(use_scale=False)")
keras_layer("additive_masks", "AdditiveAttention()", [numbers(5, 8)],
            arguments="mask=[visible(7, 2, 5), visible(6, 2, 7)], use_causal_mask=True")


# ---- torch.nn.MultiheadAttention: embedding 8, 2 heads, batch 2, 5 queries, 7 keys ----

def mha(name, arguments="", call="", layer="", kdim=8, vdim=8):
    m = torch.nn.MultiheadAttention(8, 2, **eval(f"dict({layer})"))
    with torch.no_grad():
        for seed, (_, p) in enumerate(sorted(m.named_parameters()), 20):
            p.copy_(numbers(seed, *p.shape) / 4)
    x, y, z = numbers(1, 2, 5, 8), numbers(2, 2, 7, kdim), numbers(3, 2, 7, vdim)  # batch first
    if not m.batch_first:
        x, y, z = (t.transpose(0, 1) for t in (x, y, z))
    out, weights = eval(f"m(x, y, z, {arguments})", {**globals(), "m": m, "x": x, "y": y, "z": z, "L": 5, "S": 7})
    if not m.batch_first:
        out = out.transpose(0, 1)
    results = {"out": out}
    if weights is not None:
        results["weights"] = weights
    case("mha_" + name, f"MultiheadAttention(8, 2{', ' + layer if layer else ''})(x, y, z"
         f"{', ' + arguments if arguments else ''})", **results)


mha("plain")
mha("batch_first", layer="batch_first=True")
mha("each_head", "average_attn_weights=False")
mha("no_weights", "need_weights=False")
mha("key_padding", "key_padding_mask=hidden(6, 2, S)")
mha("bool_2d", "attn_mask=hidden(6, L, S)")
mha("float_2d", "attn_mask=numbers(6, L, S)")
mha("bool_3d", "attn_mask=hidden(6, 2 * 2, L, S)", )
mha("float_3d", "attn_mask=numbers(6, 2 * 2, L, S)")
mha("both", "key_padding_mask=hidden(6, 2, S), attn_mask=hidden(7, L, S)")
mha("causal", "attn_mask=torch.ones(L, S, dtype=torch.bool).triu(1), is_causal=True, need_weights=False")
mha("all_padding", "key_padding_mask=torch.tensor([[True], [False]]).expand(2, S), need_weights=False")
mha("zero_attn", "key_padding_mask=hidden(6, 2, S)", layer="add_zero_attn=True")
mha("bias_kv", "attn_mask=hidden(6, L, S)", layer="add_bias_kv=True")
mha("bias_kv_zero", "average_attn_weights=False", layer="add_bias_kv=True, add_zero_attn=True")
mha("kdim_vdim", layer="kdim=6, vdim=4", kdim=6, vdim=4)

text = "\n".join(lines) + "\n"
(HERE / "goldens.txt").write_text(text)
print(f"{text.count('case ')} cases, {len(text)} bytes", file=sys.stderr)
