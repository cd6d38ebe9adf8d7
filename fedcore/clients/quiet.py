"""Silence for a while: the progress bars and notices of the libraries underneath, and nothing else."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the `with` block transformers, bitsandbytes and peft show no progress bars and say nothing below an error.

    bitsandbytes looks for a package `kernels` that fedcore neither needs nor wants, and warns that it is not there.
    """
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    bitsandbytes_log = logging.getLogger("bitsandbytes")
    level = bitsandbytes_log.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    bitsandbytes_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(transformers|peft|bitsandbytes)(\..*)?")
            yield
    finally:
        bitsandbytes_log.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
