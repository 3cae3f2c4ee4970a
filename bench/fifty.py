"""Learns five classes of Fashion-MNIST from fifty pictures, with and without a network that knows the other five.
bench/fifty has the usage."""

import argparse
import gzip
import json
import os
import pathlib
import random
import statistics
import struct
import subprocess
import tempfile
import zlib

DATA = pathlib.Path("/usr/share/datasets/fashion-mnist")
KNOWN = {0: "T-shirt", 1: "Trouser", 2: "Pullover", 3: "Dress", 4: "Coat"}
NEW = {5: "Sandal", 6: "Shirt", 7: "Sneaker", 8: "Bag", 9: "Ankle boot"}


def png(pixels, side):
    """A grey picture as a PNG file's bytes."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    rows = b"".join(b"\0" + pixels[y * side:(y + 1) * side] for y in range(side))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def read(split):
    """label -> its pictures."""
    pictures = gzip.open(DATA / f"{split}-images-idx3-ubyte.gz").read()
    labels = gzip.open(DATA / f"{split}-labels-idx1-ubyte.gz").read()[8:]
    side = struct.unpack(">I", pictures[8:12])[0]
    found = {}
    for i, label in enumerate(labels):
        at = 16 + i * side * side
        found.setdefault(label, []).append(png(pictures[at:at + side * side], side))
    return found


def write(folder, classes, pictures):
    for label, name in classes.items():
        (folder / name).mkdir(parents=True)
        for i, data in enumerate(pictures[label]):
            (folder / name / f"{i}.png").write_bytes(data)
    return folder


def heed(*command):
    done = subprocess.run([os.environ["HEED"], *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"heed failed: {done.stderr.strip()}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--arch", default="cnn-cbam")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2, help="passes over the 30,000 pictures of the known classes")
    parser.add_argument("--keep", type=pathlib.Path, help="a folder to leave everything in")
    a = parser.parse_args()
    temporary = tempfile.TemporaryDirectory()  # gone with this
    scratch = a.keep or pathlib.Path(temporary.name)
    train, test = read("train"), read("t10k")
    known = write(scratch / "known", KNOWN, train)
    tested = write(scratch / "test", NEW, test)
    new = ["--arch", a.arch, "--width", a.width, "--grey", "--size", 28]
    base = scratch / "base"
    heed("train", "classify", known, "--out", base, *new, "--patience", 0, "--batch", 64, "--epochs", a.epochs)

    ways = {"from nothing": new, "from a network that knows five other classes": ["--from", base],
            "the same, its backbone frozen": ["--from", base, "--freeze-backbone"]}
    found = {way: [] for way in ways}
    for draw in range(a.draws):
        chance = random.Random(draw)
        fifty = write(scratch / f"fifty{draw}", NEW, {label: chance.sample(train[label], 10) for label in NEW})
        for i, (way, options) in enumerate(ways.items()):
            out = scratch / f"model{draw}-{i}"
            heed("train", "classify", fifty, "--out", out, *options, "--patience", 0, "--batch", 16,
                 "--steps", 200, "--seed", draw + 1)
            found[way].append(json.loads(heed("eval", "classify", out, tested, "--json"))["accuracy"])
    print(f"{a.arch}, width {a.width}; 50 pictures to learn from, 5,000 to be measured with, {a.draws} draws")
    for way, shares in found.items():
        print(f"{way:46}{100 * statistics.mean(shares):6.1f}%   {', '.join(f'{100 * s:.1f}' for s in shares)}")


if __name__ == "__main__":
    main()
