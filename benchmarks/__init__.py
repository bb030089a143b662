"""Measurements of speed, and searches whose results the package uses; each prints its table and records it in
`results/`."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor() -> str:
    """This machine's processor and its number of cores, for the record of a measurement."""
    name, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else name}, {os.cpu_count()} cores"
