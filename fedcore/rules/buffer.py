"""Large buffers whose memory goes back to the system when they do."""

from __future__ import annotations

import mmap

import numpy as np


def buffer(size: int) -> np.ndarray:
    """(size,) uint8 of zeros at the start of a page, unmapped with the last view of it.

    A heap keeps blocks of up to 32 MiB for later, and beside a budget of memory those of the last pass would stay.
    Private, since shared pages are small ones and take seven times as long to come.
    """
    pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8, size)
