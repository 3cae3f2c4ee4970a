"""Makes tests/data/vit/ and tests/data/segformer/: small models as transformers writes them, with the logits it computes.

    python3 -m venv /tmp/tf && /tmp/tf/bin/pip install torch transformers==5.24.0 safetensors pillow
    /tmp/tf/bin/python tests/data/vision_goldens.py

Each folder is a model folder with two more files: goldens.json ("pictures": shapes of batches, whose values are those of
`pixels` below) and goldens.safetensors (float32: logits.N of batch N; for some, where batch 0 was looked at). The
folders differ in whatever differs between such models; tests/vit_test.cc and segformer_test.cc load each without Python.
transformers 5 writes the names of 4 unless told otherwise.
"""
import json
import pathlib
import shutil
import tempfile
import warnings

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (DeiTConfig, DeiTForImageClassification, DeiTForImageClassificationWithTeacher, DeiTImageProcessor,
                          SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor, ViTConfig,
                          ViTForImageClassification, ViTImageProcessor)

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
HERE = pathlib.Path(__file__).parent


def pixels(shape):
    """Values from -1 to 1 that follow from their places: tests/vision_goldens.h has the same line."""
    n = torch.arange(torch.Size(shape).numel())
    return (((n * n * 31 + n * 7919) % 251).double() / 125 - 1).float().reshape(shape)


def randomised(model, seed):
    """No parameter is left where it would not be missed: biases not 0, norms not 1, running statistics neither."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            small = p.dim() < 2 or "token" in name or "position" in name
            strong = "q_proj" in name or "k_proj" in name  # flat weights would prove nothing
            p += (0.2 if small else (2 if strong else 0.6) / p[0].numel() ** 0.5) * torch.randn_like(p)
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b += 0.3 * torch.randn_like(b)
            if name.endswith("running_var"):
                b += torch.rand_like(b)
    return model.eval()


def rounded(model, dtype):
    """Weights as a file of this dtype holds them."""
    return model if dtype is None else model.to(dtype).float()


def save(name, model, processor, batches, dtype=None, new_names=False, changes=None, drop=(), more=None, pickle=False, looks=None):
    folder = HERE / name
    print(name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = rounded(model, dtype)
    with tempfile.TemporaryDirectory() as made:
        (model if dtype is None else model.to(dtype)).save_pretrained(made, save_original_format=not new_names)
        model = model.float()
        said = json.loads(pathlib.Path(made, "config.json").read_text())
        stored = load_file(pathlib.Path(made, "model.safetensors")) | (more or {})
    said.update(changes or {})
    for key in drop:
        said.pop(key, None)
    (folder / "config.json").write_text(json.dumps(said, indent=1) + "\n")
    if pickle:
        torch.save(stored, folder / "pytorch_model.bin")
    else:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    processor.save_pretrained(folder)
    tensors = dict(looks or {})
    with torch.no_grad():
        for i, shape in enumerate(batches):
            extra = {} if isinstance(model, SegformerForSemanticSegmentation) else {"interpolate_pos_encoding": True}
            single = model(pixel_values=pixels(shape), **extra).logits
            double = model.double()(pixel_values=pixels(shape).double(), **extra).logits
            model = model.float()
            worst = ((single - double).abs() / double.abs().clamp_min(1)).max().item()
            assert worst < 5e-6, worst  # what rounding could turn is no golden
            print(f"  {shape}: logits of {single.std():.2f}, {worst:.1e} from float64")
            tensors[f"logits.{i}"] = double.float().contiguous()
    save_file(tensors, folder / "goldens.safetensors")
    (folder / "goldens.json").write_text(json.dumps({"pictures": batches}) + "\n")


# ---- ViT and DeiT ----

def vit_config(kind=ViTConfig, labels=5, **changes):
    return kind(**(dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20, image_size=16,
                        patch_size=4, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, attn_implementation="eager",
                        id2label={i: f"class {i}" for i in range(labels)}, label2id={f"class {i}": i for i in range(labels)})
                   | changes))


def vit_looks(model, shape):
    """The CLS row of every layer, and the rollout of all (Abnar & Zuidema 2020)."""
    with torch.no_grad():
        layers = torch.stack(model.double()(pixel_values=pixels(shape).double(), output_attentions=True).attentions)
    model.float()
    rollout = torch.eye(layers.shape[-1]).double()
    for a in layers.mean(2):
        a = a + torch.eye(a.shape[-1])
        rollout = (a / a.sum(-1, keepdim=True)) @ rollout
    return {"cls": layers[:, :, :, 0].float().contiguous(), "rollout": rollout[:, 0].float().contiguous()}


def vit():
    own, others = [2, 3, 16, 16], [[1, 3, 24, 12], [1, 3, 22, 31]]
    # Names of 4.x, and what ViTModel's pooler leaves behind.
    model = randomised(ViTForImageClassification(vit_config(num_hidden_layers=3)), 1)
    save("vit/base", model, ViTImageProcessor(), [own, *others], looks=vit_looks(model, own),
         more={"vit.pooler.dense.weight": torch.zeros(12, 12), "vit.pooler.dense.bias": torch.zeros(12)})
    # Names of 5.x, everything else as it seldom is; keys that old files leave out.
    model = randomised(ViTForImageClassification(vit_config(labels=2, qkv_bias=False, hidden_act="relu", num_channels=1, image_size=13,
                                                            patch_size=3, layer_norm_eps=1e-2, num_attention_heads=2)), 2)
    save("vit/odd", model, ViTImageProcessor(size={"height": 13, "width": 13}), [[2, 1, 13, 13], [1, 1, 14, 14], [2, 1, 9, 20]],
         new_names=True, drop=["id2label", "label2id"], changes={"image_size": [13, 13], "hidden_dropout_prob": None})
    save("vit/half", randomised(ViTForImageClassification(vit_config()), 3), ViTImageProcessor(), [own], dtype=torch.float16)
    save("vit/brain", randomised(ViTForImageClassification(vit_config(hidden_act="silu")), 4), ViTImageProcessor(), [own],
         dtype=torch.bfloat16, new_names=True)
    model = randomised(DeiTForImageClassification(vit_config(DeiTConfig)), 5)
    save("vit/deit", model, DeiTImageProcessor(), [own, *others], looks=vit_looks(model, own))
    model = randomised(DeiTForImageClassificationWithTeacher(vit_config(DeiTConfig)), 6)
    save("vit/teacher", model, DeiTImageProcessor(), [own, *others])
    model = randomised(DeiTForImageClassificationWithTeacher(vit_config(DeiTConfig)), 7)
    save("vit/teacher_new", model, DeiTImageProcessor(), [own], new_names=True)


# ---- SegFormer ----

def segformer_config(labels=5, **changes):
    return SegformerConfig(**(dict(hidden_sizes=[8, 8, 12, 16], depths=[2, 1, 1, 2], num_attention_heads=[1, 2, 3, 4],
                                   sr_ratios=[8, 4, 2, 1], mlp_ratios=[2, 2, 2, 2], decoder_hidden_size=12,
                                   attn_implementation="eager", id2label={i: f"class {i}" for i in range(labels)},
                                   label2id={f"class {i}": i for i in range(labels)}) | changes))


def segformer_looks(model, shape, ratios):
    """How much each place received from the mean query, [depth, B, heads, h, w] of each stage."""
    with torch.no_grad():
        output = model.double()(pixel_values=pixels(shape).double(), output_attentions=True, output_hidden_states=True)
    model.float()
    layers, looks = list(output.attentions), {}
    for s, (depth, hidden) in enumerate(zip(model.config.depths, output.hidden_states)):
        stage = torch.stack([layers.pop(0).mean(2) for _ in range(depth)])
        looks[f"received.{s}"] = stage.unflatten(-1, [hidden.shape[2] // ratios[s], hidden.shape[3] // ratios[s]]).float().contiguous()
    assert not layers
    return looks


def small(model):
    """Embeddings so small that an eps of 1e-6 in the norms behind them would be seen."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "patch_embeddings.proj" in name:
                p *= 0.01
    return model


def segformer():
    model = small(randomised(SegformerForSemanticSegmentation(segformer_config()), 11))
    batches = [[2, 3, 64, 64], [1, 3, 50, 83]]
    save("segformer/base", model, SegformerImageProcessor(do_reduce_labels=True), batches,
         looks=segformer_looks(model, batches[1], [8, 4, 2, 1]))
    model = randomised(SegformerForSemanticSegmentation(segformer_config(
        labels=2, num_channels=1, num_encoder_blocks=3, hidden_sizes=[4, 6, 8], depths=[1, 2, 1], num_attention_heads=[2, 3, 1],
        sr_ratios=[4, 1, 2], patch_sizes=[5, 3, 2], strides=[3, 2, 2], mlp_ratios=[3, 2, 1], decoder_hidden_size=8, hidden_act="relu")), 12)
    save("segformer/odd", model, SegformerImageProcessor(size={"height": 40, "width": 30}), [[2, 1, 40, 30], [1, 1, 33, 37]],
         new_names=True, drop=["id2label", "label2id", "reshape_last_stage"])
    # Read back, a last stage that is not reshaped works where it has as many channels as places.
    model = randomised(SegformerForSemanticSegmentation(segformer_config(hidden_sizes=[4, 4, 8, 4], num_attention_heads=[1, 1, 2, 2],
                                                                         depths=[1, 1, 1, 1], sr_ratios=[4, 2, 2, 1],
                                                                         reshape_last_stage=False)), 13)
    save("segformer/half", model, SegformerImageProcessor(), [[1, 3, 64, 64]], dtype=torch.float16)
    model = randomised(SegformerForSemanticSegmentation(segformer_config(hidden_sizes=[4, 4, 6, 8], num_attention_heads=[1, 2, 3, 4],
                                                                         depths=[1, 1, 1, 1], sr_ratios=[4, 2, 2, 1])), 14)
    save("segformer/brain", model, SegformerImageProcessor(), [[1, 3, 40, 48]], dtype=torch.bfloat16, new_names=True)
    model = randomised(SegformerForSemanticSegmentation(segformer_config(hidden_sizes=[4, 4, 4, 4], num_attention_heads=[1, 1, 2, 2],
                                                                         depths=[1, 1, 1, 1], sr_ratios=[2, 2, 1, 1])), 15)
    save("segformer/pickle", model, SegformerImageProcessor(), [[1, 3, 32, 32]], pickle=True)


if __name__ == "__main__":
    vit()
    segformer()
    print(sum(f.stat().st_size for d in ("vit", "segformer") for f in (HERE / d).rglob("*") if f.is_file()), "bytes")
