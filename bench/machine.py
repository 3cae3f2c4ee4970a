"""What a result must say about where it was measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def _field(file: str, name: str) -> str:
    try:
        for line in Path(file).read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    except OSError:
        pass
    return "unknown"


def describe() -> dict[str, object]:
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        caches[f"L{level} {kind.lower()}"] = size
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "family, model": f"{_field('/proc/cpuinfo', 'cpu family')}, {_field('/proc/cpuinfo', 'model')}",
        "cores": len(os.sched_getaffinity(0)),
        "caches": caches,
        "memory": _field("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "system": platform.platform(),
        "virtual": "hypervisor" in _field("/proc/cpuinfo", "flags").split(),
        "python": platform.python_version(),
    }


def load() -> float:
    """Processes that wanted a core, on average over the last minute."""
    return os.getloadavg()[0]


def free_memory() -> int:
    """Bytes that can be had without swapping."""
    words = _field("/proc/meminfo", "MemAvailable").split()
    return int(words[0]) * 1024 if words[0].isdigit() else 1 << 60
