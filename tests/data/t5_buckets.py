#!/usr/bin/env python3
"""Prints the buckets that tests/score_test.cc expects of t5_bucket, as transformers computes them. Needs torch and
transformers (pip install torch transformers)."""
import torch
from transformers.models.t5.modeling_t5 import T5Attention

DISTANCES = [-1000, -129, -128, -127, -91, -90, -64, -32, -17, -16, -15, -9, -8, -7, -1, 0, 1, 7, 8, 9, 11, 12, 15, 16,
             17, 22, 23, 31, 32, 33, 45, 46, 63, 64, 90, 91, 127, 128, 129, 1000]


def buckets(both, count, most):
    return T5Attention._relative_position_bucket(torch.tensor(DISTANCES), both, count, most).tolist()


for name, values in {"DISTANCES": DISTANCES, "BOTH": buckets(True, 32, 128), "BACK": buckets(False, 32, 128),
                     "FEW": buckets(True, 8, 20)}.items():
    print(name + ": " + ", ".join(map(str, values)))
