"""The command line: `fedcore demo | run | aggregate | plan | report | keys | doctor`, one command a file of its name.

Results go to stdout (one JSON object with --json), progress and errors to stderr. An error is one line and exit
code 1, a misuse of the command line 2, an interruption 130 (Ctrl+C), 143 (SIGTERM) or 129 (SIGHUP).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from fedcore.cli.aggregate import aggregate
from fedcore.cli.demo import demo
from fedcore.cli.doctor import doctor
from fedcore.cli.help import Command, Group
from fedcore.cli.keys import keys
from fedcore.cli.plan import plan
from fedcore.cli.report import report
from fedcore.cli.run import run
from fedcore.cli.signals import Interrupted, heeded
from fedcore.cli.terminal import Failed, all_on_stdout, cause_of, inert, lossy_stderr
from fedcore.errors import FedcoreError

app = typer.Typer(
    name="fedcore",
    cls=Group,
    help="Federated post-training of open-weight language models, through a compiled aggregation core.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, run, aggregate, plan, report, doctor):
    app.command(cls=Command)(command)
app.add_typer(keys)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on `arguments` (those of the process if None) and return the exit code."""
    # torch's OpenMP threads wait for each other by spinning: with another process on the machine that made training 30
    # to 80 times slower, while a short spin costs nothing on an idle one. Read once, when torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # closed, as by `>&-`: nobody reads it, and the next file to be opened would take its number
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    given = list(sys.argv[1:] if arguments is None else arguments)
    with lossy_stderr(), all_on_stdout():
        return _carried_out(given or ["--help"])


def _carried_out(given: Sequence[str]) -> int:
    """The exit code of a command line; what ended it early is said."""
    try:
        with heeded():
            code = typer.main.get_command(app).main(given, prog_name="fedcore", standalone_mode=False)
    except Failed as error:
        code = _fail(str(error), 1)
        return _fail(error.hint, code, prefix="fedcore: ")
    except Interrupted as error:
        return _fail(str(error), error.code, prefix="fedcore: ")
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130, prefix="fedcore: ")
    except BrokenPipeError:
        # the reader of our output went away, as `| head` does; nothing is left to say
        sys.stderr.close()
        return 1
    except FedcoreError as error:
        return _fail(str(error), 1)
    except OSError as error:
        return _fail(cause_of(error), 1)
    except MemoryError as error:
        return _fail(f"{cause_of(error)}; free some, then do it again", 1)
    except Exception as error:
        # a misuse of the command line carries its own message and exit code; anything else is a fault of ours
        if not hasattr(error, "format_message"):
            raise
        message, misuse = error.format_message().rstrip("."), getattr(error, "exit_code", 2)
        # without one, the help itself was shown
        return _fail(f"{message}; see `fedcore --help`", misuse) if message else misuse
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int, prefix: str = "fedcore: error: ") -> int:
    """Say each fault on a line of its own."""
    for line in message.split("\n"):
        print(prefix + inert(line), file=sys.stderr)
    return code
