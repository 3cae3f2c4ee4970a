"""Trains the same Transformer with Heed and with PyTorch's nn.Transformer in turns. bench/training has the usage."""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

import sentencepiece
import torch
from torch import nn

PAD, BOS, EOS = 0, 2, 3


class Translator(nn.Module):
    """Marian's Transformer out of PyTorch's own layers, as its tutorial builds one: tied embeddings, fixed positions."""

    def __init__(self, vocab, a):
        super().__init__()
        self.embedding = nn.Embedding(vocab, a.dim, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=a.dim**-0.5)
        self.transformer = nn.Transformer(a.dim, a.heads, a.layers, a.layers, a.ffn, a.dropout, nn.functional.silu,
                                          batch_first=True)
        self.bias = nn.Parameter(torch.zeros(vocab))
        self.dropout, self.scale = nn.Dropout(a.dropout), math.sqrt(a.dim)
        half = torch.arange((a.dim + 1) // 2)
        angle = torch.arange(512)[:, None] / 10000 ** (2 * half / a.dim)
        self.register_buffer("positions", torch.cat([angle.sin(), angle.cos()], 1)[:, :a.dim])

    def embed(self, ids):
        return self.dropout(self.embedding(ids) * self.scale
                            + self.positions[:ids.shape[1]])

    def forward(self, source, target):
        padding = source == PAD
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        hidden = self.transformer(self.embed(source), self.embed(target), tgt_mask=causal, tgt_is_causal=True,
                                  src_key_padding_mask=padding, memory_key_padding_mask=padding)
        return hidden @ self.embedding.weight.T + self.bias


def batches(examples, tokens):
    """Heed's rule: sorted by target, then source length; as many rows as give `tokens` target tokens."""
    found, rows, widest = [], [], (0, 0)
    for source, target in sorted(examples, key=lambda e: (len(e[1]), len(e[0]))):
        wide = (max(widest[0], len(source)), max(widest[1], len(target) - 1))
        if rows and ((len(rows) + 1) * wide[1] > tokens or 2 * (len(rows) + 1) * wide[0] > 3 * tokens):
            found.append(rows)
            rows, wide = [], (len(source), len(target) - 1)
        rows, widest = rows + [(source, target)], wide
    return found + [rows]


def padded(rows):
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def train_with_pytorch(a, pairs, vocab):
    torch.manual_seed(1)
    torch.set_num_threads(a.threads)
    spm = sentencepiece.SentencePieceProcessor(model_file=str(vocab))
    examples = [(spm.encode(s) + [EOS], [BOS] + spm.encode(t) + [EOS]) for s, t in pairs]
    ready = [(padded([s for s, _ in rows]), padded([t for _, t in rows])) for rows in batches(examples, a.batch_tokens)]
    model = Translator(spm.get_piece_size(), a).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=1e-4, fused=True)
    criterion = nn.CrossEntropyLoss(ignore_index=PAD, label_smoothing=0.1)
    start = time.perf_counter()
    for source, target in ready:
        logits = model(source, target[:, :-1])
        loss = criterion(logits.flatten(0, 1), target[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - start, loss.item()


def train_with_heed(program, a, folder, vocab):
    out = folder / "model"
    subprocess.run(["rm", "-rf", out], check=True)
    out.mkdir()
    (out / "source.spm").write_bytes(vocab.read_bytes())
    # One pair to validate with: an epoch's time is then training alone.
    command = [program, "train", "translate", "--pairs", folder / "pairs.tsv", "--valid", folder / "valid.tsv", "--out",
               out, "--arch", "transformer", "--epochs", 1, "--patience", 0, "--dim", a.dim, "--heads", a.heads,
               "--layers", a.layers, "--ffn", a.ffn, "--dropout", a.dropout, "--batch-tokens", a.batch_tokens,
               "--average", 0, "--lr", 1e-3, "--checkpoint-seconds", 86400]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True,
                          env=dict(os.environ, HEED_THREADS=str(a.threads)))
    if done.returncode:
        raise SystemExit(f"heed failed: {done.stderr.strip()}")
    training = json.loads((out / "training.json").read_text())
    return training["seconds"], training["curve"][-1]["train_loss"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path)
    parser.add_argument("--pairs", type=int, default=10000)
    parser.add_argument("--vocab", type=int, default=8000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--ffn", type=int, default=1024)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--batch-tokens", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    a = parser.parse_args()
    lines = [file.read_text().splitlines() for file in (a.source, a.target)]
    pairs = [(s.strip(), t.strip()) for s, t in zip(*lines) if s.strip() and t.strip() and "\t" not in s + t][:a.pairs]
    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / "pairs.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in pairs))
    (folder / "valid.tsv").write_text(f"{pairs[0][0]}\t{pairs[0][1]}\n")
    text = folder / "text"
    text.write_text("".join(f"{s}\n{t}\n" for s, t in pairs))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "vocab"), vocab_size=a.vocab, model_type="bpe", pad_id=0, unk_id=1,
        bos_id=2, eos_id=3, byte_fallback=True, character_coverage=0.9999, hard_vocab_limit=False, minloglevel=2)
    vocab = folder / "vocab.model"

    runs = {f"PyTorch {torch.__version__}, nn.Transformer": lambda: train_with_pytorch(a, pairs, vocab),
            "Heed on the wheel's LibTorch": lambda: train_with_heed(os.environ["HEED_ON_WHEEL"], a, folder, vocab),
            "Heed on its own LibTorch": lambda: train_with_heed(os.environ["HEED"], a, folder, vocab)}
    times, losses = {name: [] for name in runs}, {}
    for _ in range(a.rounds):
        for name, run in runs.items():
            seconds, losses[name] = run()
            times[name].append(seconds)
    first = statistics.median(times[next(iter(runs))])
    print(f"{len(pairs)} pairs, {a.layers} + {a.layers} layers of width {a.dim}, {a.threads} threads, {a.rounds} rounds in turns, "
          f"load {os.getloadavg()[0]:.1f}")
    print(f"{'':44}{'sentences/s':>12}{'spread':>8}{'times':>8}{'loss':>8}")
    for name, of in times.items():
        median = statistics.median(of)
        print(f"{name:44}{len(pairs) / median:12.1f}{max(of) / min(of):8.2f}{first / median:7.2f}x{losses[name]:8.2f}")


if __name__ == "__main__":
    main()
