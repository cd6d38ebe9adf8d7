"""The command line: `fedcore demo | run | aggregate | plan | report | keys | doctor`, one command a file of its name.

Results go to stdout (one JSON object with --json), progress and errors to stderr. An error is one line and exit
code 1, a misuse of the command line 2, an interruption 130.
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
from fedcore.cli.terminal import Failed, Interrupted
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
    if sys.stdout is None:
        # closed, as by `>&-`: nobody wants a result, and the next file to be opened would take its number
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = typer.main.get_command(app).main(given or ["--help"], prog_name="fedcore", standalone_mode=False)
    except Failed as error:
        code = _fail(str(error), 1)
        return _fail(error.hint, code, prefix="fedcore: ")
    except Interrupted as error:
        return _fail(str(error), 130, prefix="fedcore: ")
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130, prefix="fedcore: ")
    except BrokenPipeError:
        # the reader of our output went away, as `| head` does; nothing is left to say
        sys.stderr.close()
        return 1
    except FedcoreError as error:
        return _fail(str(error), 1)
    except OSError as error:
        return _fail(f"{error.filename or 'system'}: {error.strerror or error}", 1)
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
    for line in message.splitlines() or [""]:
        print(prefix + line, file=sys.stderr)
    return code
