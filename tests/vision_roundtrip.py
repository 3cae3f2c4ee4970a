"""Opens a folder that Heed wrote with transformers, and compares logits and preprocessing with Heed's.

    HEED_TRANSFORMERS=/tmp/tf/bin/python ./test -R roundtrip    (vit_test.cc and segformer_test.cc call this)
    python tests/vision_roundtrip.py MODEL EXPECTED.safetensors
"""
import json
import pathlib
import sys
import warnings

warnings.filterwarnings("ignore")
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def main(folder, expected):
    config = json.loads(pathlib.Path(folder, "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    model, loading = kind.from_pretrained(folder, output_loading_info=True)
    for what, names in loading.items():
        assert not names, f"{what}: {names}"
    model = model.eval()
    assert [model.config.id2label[i] for i in range(model.config.num_labels)] == list(map(config["id2label"].get, map(str, range(len(config["id2label"])))))
    extra = {} if config["model_type"] == "segformer" else {"interpolate_pos_encoding": True}
    tensors, largest, batches = load_file(expected), 0.0, 0
    while f"pictures.{batches}" in tensors:
        with torch.no_grad():
            theirs = model(pixel_values=tensors[f"pictures.{batches}"], **extra).logits
        ours = tensors[f"logits.{batches}"]
        assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
        largest = max(largest, ((ours - theirs).abs() / theirs.abs().clamp_min(1)).max().item())
        batches += 1
    assert batches > 0 and largest < 1e-5, f"logits differ by {largest}"

    said = json.loads(pathlib.Path(folder, "preprocessor_config.json").read_text())
    read = transformers.AutoImageProcessor.from_pretrained(folder).to_dict()
    for key, value in said.items():
        if key == "image_processor_type":
            assert read[key].startswith(value), (read[key], value)
        elif key != "do_center_crop" or value:  # which not every processor has
            assert read[key] == value or list(read[key]) == value, (key, read[key], value)
    print(f"transformers {transformers.__version__}, {kind.__name__}: logits within {largest:.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
