#!/usr/bin/env python3
"""Makes pictures_goldens.json: small files of every kind that apps/pictures reads, with the pixels Pillow sees in them, and
the checksums of Pillow's resized pictures. python3 -m venv /tmp/pil && /tmp/pil/bin/pip install pillow numpy, then
/tmp/pil/bin/python tests/data/pictures_goldens.py. Made with Pillow 13.0.0; it prints nothing."""
import io
import json
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

WIDTH, HEIGHT = 11, 7


def noise(width, height, channels, seed=1):
    """What tests/resize_test.cc makes, too."""
    values = []
    for _ in range(width * height * channels):
        seed = (seed * 1103515245 + 12345) % 2**31
        values.append(seed >> 16 & 255)
    return np.array(values, np.uint8).reshape(height, width, channels)


def smooth(channels):
    """Colours that JPEG and WebP keep well."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [20 * x + 5 * y, 250 - 12 * x - 9 * y, 30 * y + 4 * x, 10 * x + 15 * y]
    return np.stack(planes[:channels], -1).clip(0, 255).astype(np.uint8)


# ---- PNG, written here because Pillow writes few of its kinds ----

PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed(rows, bits):
    out = b""
    for row in rows:
        samples = row.reshape(-1)
        if bits == 16:
            line = samples.astype(">u2").tobytes()
        else:
            text = "".join(format(int(s), f"0{bits}b") for s in samples)
            text += "0" * (-len(text) % 8)
            line = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
        out += b"\0" + line
    return out


def png(values, kind, bits=8, interlaced=False, palette=b"", transparent=b""):
    height, width = values.shape[:2]
    if interlaced:
        parts = [values[y::dy, x::dx] for x, y, dx, dy in PASSES]
        data = b"".join(packed(part, bits) for part in parts if part.size)
    else:
        data = packed(values, bits)
    out = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlaced))
    if palette:
        out += chunk(b"PLTE", palette)
    if transparent:
        out += chunk(b"tRNS", transparent)
    return out + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def seen(data):
    """What Pillow makes of a file: turned, over white, RGB."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGB", image.size, "white")
        ground.paste(image, mask=image.getchannel("A"))
        return ground
    return image.convert("RGB")


pictures = []


def add(name, data, expected=None):
    image = seen(data) if expected is None else Image.fromarray(expected)
    pictures.append(
        dict(name=name, file=data.hex(), width=image.width, height=image.height, pixels=image.tobytes().hex())
    )


def indices(bits):
    return noise(WIDTH, HEIGHT, 1)[:, :, 0] >> (8 - bits)


PALETTE_COLOURS = noise(256, 1, 3, seed=7).tobytes()
wide = noise(WIDTH, HEIGHT, 6, seed=3).astype(np.int64)
wide = wide[:, :, :3] * 256 + wide[:, :, 3:]
narrowed = (wide * 255 * 2 + 65535) // (2 * 65535)

add("png rgb", png(noise(WIDTH, HEIGHT, 3), RGB))
add("png rgb interlaced", png(noise(WIDTH, HEIGHT, 3), RGB, interlaced=True))
add("png rgba", png(noise(WIDTH, HEIGHT, 4), RGBA))
add("png grey", png(noise(WIDTH, HEIGHT, 1), GREY))
add("png grey and alpha", png(noise(WIDTH, HEIGHT, 2), GREY_ALPHA))
for bits in (1, 2, 4):
    add(f"png grey {bits} bits", png(indices(bits), GREY, bits), np.repeat(indices(bits)[:, :, None] * (255 // (2**bits - 1)), 3, 2))
for bits in (1, 2, 4, 8):
    add(f"png palette {bits} bits", png(indices(bits), PALETTE, bits, palette=PALETTE_COLOURS[: 3 * 2**bits]))
add("png palette interlaced", png(indices(4), PALETTE, 4, interlaced=True, palette=PALETTE_COLOURS[:48]))
add("png palette with alpha", png(indices(2), PALETTE, 2, palette=PALETTE_COLOURS[:12], transparent=b"\x00\x80\xff"))
add("png rgb with a transparent colour", png(indices(1)[:, :, None] * np.full(3, 200), RGB, transparent=b"\0\xc8" * 3))
add("png rgb 16 bits", png(wide, RGB, 16), narrowed.astype(np.uint8))
add("png grey 16 bits", png(wide[:, :, 0], GREY, 16), np.repeat(narrowed[:, :, :1], 3, 2).astype(np.uint8))

picture = Image.fromarray(smooth(3))
add("jpeg baseline", saved(picture, "JPEG"))
add("jpeg progressive", saved(picture, "JPEG", progressive=True))
add("jpeg without subsampling", saved(picture, "JPEG", subsampling=0))
add("jpeg grey", saved(picture.convert("L"), "JPEG"))
add("jpeg cmyk", saved(Image.fromarray(smooth(4), "CMYK"), "JPEG"))
for orientation in range(1, 9):
    exif = Image.Exif()
    exif[0x0112] = orientation
    add(f"jpeg orientation {orientation}", saved(picture, "JPEG", exif=exif, optimize=True))
add("jpeg orientation in Intel's order", saved(picture, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"))
exif = Image.Exif()
exif[0x0112] = 6
add("png orientation 6", saved(picture, "PNG", exif=exif))
add("webp orientation 6", saved(picture, "WEBP", exif=exif))
add("webp lossy", saved(picture, "WEBP"))
add("webp lossless", saved(picture, "WEBP", lossless=True))
add("webp lossy with alpha", saved(Image.fromarray(smooth(4)), "WEBP"))
add("webp lossless with alpha", saved(Image.fromarray(smooth(4)), "WEBP", lossless=True))
add("bmp 24 bits", saved(picture, "BMP"))
add("bmp 32 bits with alpha", saved(Image.fromarray(smooth(4)), "BMP"))
add("bmp palette", saved(picture.quantize(200), "BMP"))
add("bmp grey", saved(picture.convert("L"), "BMP"))
add("bmp 1 bit", saved(Image.fromarray(indices(1) * 255).convert("1"), "BMP"))


def bmp(header, rows, size=40):
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(rows), 0, 0, 14 + len(header)) + header + rows


# Kinds that Pillow reads but does not write: 4 bits, from top to bottom, 16 bits, OS/2.
nibbles = bytes(range(16)) + noise(16, 2, 3).tobytes()
rows = b"".join(bytes([a, b, c, 0]) for a, b, c in noise(3, 5, 3, seed=9).reshape(-1, 3))
fours = noise(16, 1, 4, seed=5)
fours[:, :, 3] = 0
add("bmp 4 bits", bmp(struct.pack("<IiiHHIIiiII", 40, 6, 4, 1, 4, 0, 0, 0, 0, 0, 0) + fours.tobytes(), rows[:16]))
add("bmp from top to bottom", bmp(struct.pack("<IiiHHIIiiII", 40, 4, -5, 1, 24, 0, 0, 0, 0, 0, 0), rows))
add("bmp 16 bits", bmp(struct.pack("<IiiHHIIiiII", 40, 6, 5, 1, 16, 0, 0, 0, 0, 0, 0), rows))
add("bmp 16 bits in fields", bmp(struct.pack("<IiiHHIIiiII", 40, 6, 5, 1, 16, 3, 0, 0, 0, 0, 0) + struct.pack("<III", 0xF800, 0x7E0, 0x1F), rows))
add("bmp os/2", bmp(struct.pack("<IHHHH", 12, 4, 5, 1, 8) + noise(256, 1, 3, seed=5).tobytes(), rows[:20]))

# ---- What is refused ----

refused = dict(
    animation=saved(picture, "WEBP", save_all=True, append_images=[ImageOps.mirror(picture)]).hex(),
    gif=saved(picture, "GIF").hex(),
    tiff=saved(picture, "TIFF").hex(),
)

# ---- Masks: the values as they are stored ----

masks = []


def add_mask(name, data, values):
    masks.append(dict(name=name, file=data.hex(), values=[int(v) for v in values.reshape(-1)]))


for bits in (1, 2, 4, 8):
    add_mask(f"grey {bits} bits", png(indices(bits), GREY, bits), indices(bits))
    add_mask(f"palette {bits} bits", png(indices(bits), PALETTE, bits, palette=PALETTE_COLOURS[: 3 * 2**bits]), indices(bits))
add_mask("grey 16 bits", png(wide[:, :, 0], GREY, 16), wide[:, :, 0])
add_mask("palette interlaced", png(indices(4), PALETTE, 4, interlaced=True, palette=PALETTE_COLOURS[:48]), indices(4))
add_mask("palette with alpha", png(indices(2), PALETTE, 2, palette=PALETTE_COLOURS[:12], transparent=b"\0\0"), indices(2))
add_mask("grey and alpha", png(noise(WIDTH, HEIGHT, 2), GREY_ALPHA), noise(WIDTH, HEIGHT, 2)[:, :, 0])
add_mask("grey as rgb", png(np.repeat(indices(8)[:, :, None], 3, 2), RGB), indices(8))
add_mask("bmp grey", saved(Image.fromarray(indices(8)), "BMP"), indices(8))

# ---- Resizing: width, height, channels, new width, new height, filter, CRC-32 of the new bytes ----

sizes = [
    (23, 17, 11, 9), (23, 17, 46, 34), (23, 17, 23, 5), (23, 17, 7, 17), (23, 17, 1, 1), (1, 1, 9, 5), (1, 19, 6, 4),
    (19, 1, 6, 4), (2, 2, 255, 3), (97, 61, 96, 60), (97, 61, 98, 62), (128, 96, 32, 24), (100, 75, 64, 64), (64, 64, 224, 224),
    (161, 120, 53, 40), (240, 180, 33, 181), (31, 30, 30, 31), (300, 3, 7, 50), (500, 2, 499, 3), (5, 5, 500, 333),
]
resized = []
for width, height, new_width, new_height in sizes:
    for filter in (0, 1, 2, 3, 4):
        for channels in (1, 3):
            array = noise(width, height, channels)
            image = Image.fromarray(array if channels == 3 else array[:, :, 0]).resize((new_width, new_height), filter)
            resized.append([width, height, channels, new_width, new_height, filter, zlib.crc32(image.tobytes())])

goldens = dict(pictures=pictures, refused=refused, masks=masks, resized=resized)
lines = [f'"{key}": ' + json.dumps(value).replace("}, ", "},\n").replace("], ", "],\n") for key, value in goldens.items()]
pathlib.Path(__file__).with_name("pictures_goldens.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
