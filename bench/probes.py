"""What the machine can do, through probes.cc: sampled in every round, so that shares are of the same minutes."""

from __future__ import annotations

import ctypes as c
from dataclasses import dataclass, field
from pathlib import Path

NO_FMA = {"SSE4", "EMU128", "SCALAR"}
WALKS = [(streams, ahead, alternate) for alternate in (0, 1) for streams in (1, 2, 4) for ahead in (0, 256, 1024, 4096)]


@dataclass
class Samples:
    fma: dict[str, list[float]] = field(default_factory=dict)  # flops a second, by SIMD target
    tile: dict[str, list[float]] = field(default_factory=dict)
    read: list[float] = field(default_factory=list)  # bytes a second

    def peak(self) -> float:
        return max(max(s) for s in self.fma.values())

    def best_tile(self) -> float:
        return max(max(s) for s in self.tile.values())

    def bandwidth(self) -> float:
        return max(self.read)


class Probes:
    def __init__(self, library: Path, seconds: float) -> None:
        self.lib = c.CDLL(str(library))
        self.lib.heed_bench_target.restype = c.c_char_p
        for name in ("fma", "tile", "read"):
            getattr(self.lib, f"heed_bench_{name}").restype = c.c_double
        self.lib.heed_bench_fma.argtypes = self.lib.heed_bench_tile.argtypes = [c.c_int, c.c_int, c.c_double]
        self.lib.heed_bench_read.argtypes = [c.c_int, c.c_double, c.c_int, c.c_int, c.c_int]
        names: list[str] = []
        while name := self.lib.heed_bench_target(len(names)):
            names.append(name.decode())
        self.targets = {n: i for i, n in enumerate(names) if n not in NO_FMA} or {names[0]: 0}
        self.seconds = seconds
        self.samples: dict[int, Samples] = {}  # by thread count
        self.walk: dict[int, tuple[int, int, int]] = {}

    def _read(self, threads: int, walk: tuple[int, int, int]) -> float:
        rate = self.lib.heed_bench_read(threads, self.seconds, *walk)
        if not rate:
            raise MemoryError("the bandwidth probe needs half a gigabyte of memory and did not get it")
        return rate

    def sample(self, threads: int) -> None:
        """One more sample of each, for that many threads."""
        s = self.samples.setdefault(threads, Samples())
        if threads not in self.walk:
            # Which order of reading is the fastest depends on the memory controller: try all, twice.
            rates = {w: max(self._read(threads, w) for _ in range(2)) for w in WALKS}
            self.walk[threads] = max(rates, key=lambda w: rates[w])
        for name, i in self.targets.items():
            s.fma.setdefault(name, []).append(self.lib.heed_bench_fma(i, threads, self.seconds))
            s.tile.setdefault(name, []).append(self.lib.heed_bench_tile(i, threads, self.seconds))
        s.read.append(self._read(threads, self.walk[threads]))
