"""Opens a folder that Heed trained with transformers, and compares logits, generated ids and text with Heed's.

    HEED_TRANSFORMERS=/tmp/tf/bin/python ./test -R marian      (marian_test.cc trains the folder and calls this)
    python tests/marian_roundtrip.py MODEL EXPECTED.json
"""
import json
import sys
import warnings

warnings.filterwarnings("ignore")
import torch  # noqa: E402
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def main(folder, expected):
    said = json.load(open(expected, encoding="utf-8"))
    model, loading = transformers.MarianMTModel.from_pretrained(folder, output_loading_info=True)
    for what, names in loading.items():
        assert not [n for n in names if "embed_positions" not in n], f"{what}: {names}"
    model = model.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert "Marian" in type(tokenizer).__name__, type(tokenizer)

    largest = 0.0
    for source, target, logits in zip(said["sources"], said["targets"], said["logits"]):
        with torch.no_grad():
            ours = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target])).logits[0]
        theirs = torch.tensor(logits).view(len(target), -1)
        largest = max(largest, ((ours - theirs).abs() / theirs.abs().clamp_min(1)).max().item())
    assert largest < 1e-5, f"logits differ by {largest}"

    batch = tokenizer([t["source"] for t in said["texts"]], return_tensors="pt", padding=True)
    for row, mask, source in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), said["sources"]):
        assert row[: sum(mask)] == source, f"{row} is not {source}"
    for search in said["generated"]:
        out = model.generate(**batch, num_beams=search["beam"], length_penalty=search["length_penalty"],
                             max_length=search["max_length"], do_sample=False).tolist()
        for row, ids in zip(out, search["ids"]):
            row = row[1:]
            row = row[: row.index(3) + 1] if 3 in row else [i for i in row if i != 0]
            assert row == ids, f"beam {search['beam']}: {row} is not {ids}"

    # What the folder itself says: beam 4.
    out = model.generate(**batch, max_length=21)
    for text, t in zip(tokenizer.batch_decode(out, skip_special_tokens=True), said["texts"]):
        assert text == t["text"], f"{t['source']!r} is {text!r} and not {t['text']!r}"
    print(f"transformers {transformers.__version__}: logits within {largest:.1e}, ids and text equal")


if __name__ == "__main__":
    main(*sys.argv[1:])
