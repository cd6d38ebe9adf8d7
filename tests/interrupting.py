"""What a signal handler does to the code that it comes upon: it raises where Python runs handlers."""

from __future__ import annotations

import dis
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import fedcore as fc

FEDCORE = Path(fc.__file__).parent
#: after these, and after no others, CPython looks for signals: it may look after fewer, depending on its version
LOOKED_AFTER = ("CALL", "INSTRUMENTED_CALL", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "RESUME")


class Late(BaseException):
    """As KeyboardInterrupt: nobody in between catches it."""


def interrupted_at(point: int, call: Callable[[], object], files: tuple[str, ...]) -> bool:
    """Call, and raise Late at one place where a handler could, numbered from 0, in these files or folders of fedcore.

    False where the call was over before.
    """
    left, last, watched = point, {}, tuple(str(FEDCORE / name) for name in files)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(watched):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            before = last.get(frame, "")
            last[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if before.startswith(LOOKED_AFTER):
                left -= 1
                if left < 0:
                    raise Late
        return trace

    sys.settrace(trace)
    try:
        call()
    except Late:
        return True
    finally:
        sys.settrace(None)
    return False


def interrupted_after(seconds: float, call: Callable[[], object]) -> bool:
    """Call with a timer that raises Late from a handler; whether it did before the call was over."""

    def late(*_: Any) -> None:
        raise Late

    before = signal.signal(signal.SIGALRM, late)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        call()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Late:
        return True
    finally:
        signal.signal(signal.SIGALRM, before)
    return False


def in_a_child(call: Callable[[], object], seconds: int = 20) -> str:
    """What a forked child says: what it returned or raised as text, and nothing where it had to be killed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        try:
            said = str(call())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said
