"""Makes metrics_golden.tsv (hypothesis TAB reference, synthetic) and metrics_golden.json (sacrebleu's scores).

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install sacrebleu==2.4.3
    /tmp/golden/bin/python tests/data/make_metrics_golden.py

The sentences are drawn from a word list and the hypotheses are damaged copies. They contain what tokenisers trip over:
numbers with points and commas, dashes, quotes, entities, umlauts, Chinese, odd white space, empty lines.
"""
import json
import pathlib
import random

import sacrebleu
from sacrebleu.metrics import BLEU, CHRF

LINES = 1000
HERE = pathlib.Path(__file__).parent

WORDS = """der die das ein eine Haus Straße Äpfel Öl Übung größer schöner läuft fällt müde Ärger the a house dog runs
window file open Close settings I'm don't it's well-known state-of-the-art e.g. i.e. U.S.A. Dr. Prof. x86-64 C++ R&D
ΑΣΟΣ ΣΊΣΥΦΟΣ İstanbul Straẞe ÉCOLE naïve œuvre мир ПРИВЕТ ДОМ 你好 世界 中文句子 日本語 한국어 שלום 🙂 👍🏽 école e\u0301cole ﬁne
user@example.com https://example.com/a?b=c&d=e /usr/lib #tag @name $5 50% 3/4 a_b [x] {y} <z> ~ ^ ` | \\ * +""".split()
NUMBERS = ["3.14", "1,000", "1.000,50", "5-6", "2024-01-31", "-7", "10%", ".5", "5.", "1,", "٣", "12:30", "½", "1.a",
           "a.1", "1-a", "a-1", "9.,9", "..", "1..2", "3,.", "7--8"]
MARKS = [".", ",", "!", "?", ";", ":", " .", " ,", "...", "…", "。", "，", "！", "\"", "'", "”", "»", ")", "-", " -"]
QUOTES = [('"', '"'), ("'", "'"), ("„", "“"), ("«", "»"), ("(", ")"), ("&quot;", "&quot;"), ("&lt;", "&gt;"),
          ("`", "'"), ("「", "」")]
ODD = ["&amp;", "&amp;lt;", "&quot;", "&gt;", "&nbsp;", "<skipped>", "<skip<skipped>ped>", "&", "&lt", "\u200b",
       "\u00a0", "\u3000", "\u2009", "\u0085", "\x1c", "\u2028", "\u00ad", "a\u00a0b", "\x0b", "\ufeff"]


def sentence(rng):
    words = []
    for _ in range(rng.choice([0, 1, 2, 3, 3, 5, 6, 8, 9, 12, 20])):
        p = rng.random()
        word = rng.choice(NUMBERS if p < 0.12 else ODD if p < 0.17 else WORDS)
        if rng.random() < 0.08:
            left, right = rng.choice(QUOTES)
            word = left + word + right
        if rng.random() < 0.15:
            word += rng.choice(MARKS)
        words.append(word)
    text = rng.choice([" "] * 20 + ["  ", "\u00a0"]).join(words)
    return text + (rng.choice(MARKS) if words and rng.random() < 0.7 else "") + rng.choice([""] * 9 + [" ", "\u3000"])


def damaged(rng, text):
    p = rng.random()
    if p < 0.04:
        return ""
    if p < 0.10:
        return sentence(rng)
    if p < 0.20:
        return text
    words = text.split(" ")
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(words))
        kind = rng.randrange(7)
        if kind == 0:
            words[at] = rng.choice(WORDS)
        elif kind == 1 and len(words) > 1:
            del words[at]
        elif kind == 2:
            words.insert(at, words[at])
        elif kind == 3:
            words[at] = words[at].swapcase()
        elif kind == 4 and len(words) > 1:
            words[at], words[at - 1] = words[at - 1], words[at]
        elif kind == 5:
            words[at] = words[at][: len(words[at]) // 2]
        else:
            words.insert(at, rng.choice(NUMBERS + ODD))
    return " ".join(words)


def main():
    rng = random.Random(20240131)
    refs = [sentence(rng) for _ in range(LINES)]
    hyps = [damaged(rng, ref) for ref in refs]
    for line in hyps + refs:
        assert not set("\t\n\r") & set(line)
    with open(HERE / "metrics_golden.tsv", "w", encoding="utf-8", newline="\n") as out:
        for hyp, ref in zip(hyps, refs):
            out.write(f"{hyp}\t{ref}\n")

    scores = []
    ranges = [(0, LINES), (0, 1), (0, 10), (10, 100), (100, 500), (500, 503), (900, 1000)] + [
        (i, i + 1) for i in range(20, 60)]
    for first, last in ranges:
        h, r = hyps[first:last], [refs[first:last]]
        row = {"first": first, "last": last, "chrf": CHRF().corpus_score(h, r).score}
        for name, options in {"13a": {}, "13a_lc": {"lowercase": True}, "none": {"tokenize": "none"},
                              "none_lc": {"tokenize": "none", "lowercase": True}, "zh": {"tokenize": "zh"},
                              "char": {"tokenize": "char"}}.items():
            b = BLEU(force=True, **options).corpus_score(h, r)
            row[name] = {"score": b.score, "precisions": b.precisions, "bp": b.bp, "hyp_len": b.sys_len,
                         "ref_len": b.ref_len}
        scores.append(row)
    tokenized = [BLEU().tokenizer(r.rstrip()) for r in refs[:200]]
    lowered = [r.lower() for r in refs[:200]]
    with open(HERE / "metrics_golden.json", "w", encoding="utf-8", newline="\n") as out:
        json.dump({"sacrebleu": sacrebleu.__version__, "scores": scores, "tokens_13a": tokenized, "lower": lowered},
                  out, ensure_ascii=True, indent=0)
        out.write("\n")


if __name__ == "__main__":
    main()
