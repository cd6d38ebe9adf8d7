"""Quantised updates are never held whole as fp32: the peak memory of a process that aggregates them, measured."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: 12 updates of 8M elements: 32 MB each as fp32, 4.1 MB as NF4. Their bytes are made without a quantiser, which would
#: leave its own peak behind; the peak is taken from the kernel after everything is there and before the work.
SCRIPT = """
import re, sys
import numpy as np
import fedcore as fc
from fedcore.quantized import part_sizes
from fedcore.updates import Cohort, Layout, Update

format, d, n, rng = sys.argv[1], 8 << 20, 12, np.random.default_rng(0)

def made(client):
    parts = [rng.integers(1, 100, size, np.uint8).astype(dtype) for dtype, size in part_sizes(format, d)]
    buffer = np.concatenate([part.view(np.uint8) for part in parts])
    ends = np.cumsum([part.nbytes for part in parts])
    offsets = np.zeros((4, 1), np.int64)
    offsets[1 : len(parts), 0] = ends[:-1]
    layout = Layout(("x",), ((d,),), ("float32",), (format,))
    return Update(layout, buffer, offsets[0], offsets[1:], {}, 1, f"client-{client:02d}", None, {})

def resident(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

updates = [made(client) for client in range(n)]
fc.aggregate([made(98), made(99)], fc.rules.Mean(), space="parameters", threads=1)
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
for rule in (fc.rules.Mean(), fc.rules.Krum(f=2), fc.rules.NormClipping(max_norm=1.0)):
    fc.aggregate(updates, rule, space="parameters", threads=1)
print(resident("VmHWM") - before)
"""


@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_peak_memory_has_no_room_for_decoded_rows(format):
    """The result (32 MB) and the copy of it that the new update holds (32 MB) are there; not one decoded row beside."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads peak memory from /proc")
    done = subprocess.run([sys.executable, "-c", SCRIPT, format], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 2 * 32 + 16
