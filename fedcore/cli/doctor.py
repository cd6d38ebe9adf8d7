"""`fedcore doctor`: what works on this machine, and what to do about the rest."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fedcore.cli.terminal import only_results_on_stdout, print_json, showing
from fedcore.errors import FedcoreError

#: the environment variables that choose how the engine runs
_VARIABLES = ("FEDCORE_BACKEND", "FEDCORE_ISA", "FEDCORE_NUM_THREADS")
#: the environment variables by which an OpenMP library binds threads to cores, also the one that imports it
_BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")
#: what each optional package is for
_OPTIONAL = {
    "torch": "training and GPU kernels",
    "triton": "GPU kernels",
    "transformers": "loading models",
    "peft": "adapters",
    "bitsandbytes": "NF4 quantisation",
    "datasets": "data sets by name",
    "dp-accounting": "differential privacy",
    "matplotlib": "plots of the report",
}


def doctor(json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Tell what works here, and how to get the rest. Exit code 0 if the engine works, 1 if not."""
    with only_results_on_stdout():
        found = examine()
    with showing():
        if json:
            print_json(found)
        else:
            _show(found)
    if not found["engine_works"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Everything that `fedcore doctor` shows, as one JSON-able object."""
    from fedcore.backends import BACKENDS, unavailable
    from fedcore.federation.machine import machine, versions

    # before torch is imported, which may bind this thread to one core
    packages, here, cores = versions(), machine(), _cores_of_all()
    backends = {name: unavailable(name) for name in BACKENDS}
    engine = _engine()
    cache, no_cache = _cache()
    gpus, no_gpus = _probe(_gpus) if packages["torch"] else ([], None)
    kernels, no_kernels = _probe(_kernels) if backends["c"] is None else (None, None)
    todo = [f"{name}: {reason}" for name, reason in backends.items() if reason]
    todo += [f"{name}: {reason}" for name, reason in (("kernels", no_kernels), ("GPU", no_gpus)) if reason]
    todo = [line for line in todo if line != f"kernels: {engine}"]
    states = {name: reason or "works" for name, reason in backends.items()}
    if backends["triton"] is None and not gpus:
        states["triton"] = _without_gpu()
    missing = [name for name in _OPTIONAL if packages[name] is None]
    if missing:
        what = ", ".join(f"{name} ({_OPTIONAL[name]})" for name in missing)
        todo.append(f"not installed: {what}; pip install 'fedcore[train]'")
    if engine:
        todo.insert(0, f"engine: {engine}")
    if no_cache:
        todo.append(no_cache)
    if bound := _bound(cores | _cores_of_all()):
        todo.append(bound)
    return {
        "engine_works": engine is None,
        "machine": here,
        "versions": packages,
        "backends": states,
        "kernels": kernels,
        "gpus": gpus or [],
        "cache": cache,
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("FEDCORE_") or name in ("OMP_NUM_THREADS", *_BINDING)
        },
        "to_do": todo,
    }


def _engine() -> str | None:
    """Aggregate a small cohort for real. None if it comes out right, else what went wrong and what to do."""

    def aggregate() -> list[float]:
        import numpy as np

        from fedcore import ops

        return ops.weighted_sum(np.array([[1, 2], [3, 6]], np.float32), [1, 3], divisor=4.0).tolist()

    got, problem = _probe(aggregate)
    if problem or got == [2.5, 5.0]:
        return problem
    return f"weighted_sum gave {got}, expected [2.5, 5.0]; reinstall fedcore"


def _probe(look: Callable[[], Any]) -> tuple[Any, str | None]:
    """(what `look` found, None), or (None, what broke and what to do): one finding never hides the others."""
    try:
        return look(), None
    except FedcoreError as error:
        # it says what was expected; here the value can only have come from the environment
        chosen = [name for name in _VARIABLES if os.environ.get(name)]
        return None, f"{error}" + (f"; correct or unset {', '.join(chosen)}" if chosen else "")
    # whatever breaks is the finding that this command is for
    except Exception as error:
        return None, f"{type(error).__name__}: {error}; reinstall fedcore"


def _without_gpu() -> str:
    """What Triton can do on a machine that has no GPU."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "works under Triton's interpreter, for tests; there is no GPU"
    return "installed, but there is no GPU; TRITON_INTERPRET=1 runs its kernels on data in main memory, for tests"


def _kernels() -> dict[str, Any]:
    """The instruction set that the C kernels use, what else could be forced, and how many threads."""
    from fedcore import native
    from fedcore.ops.rows import thread_count

    return {"isa": native.isa_selected(), "available": list(native.isa_available()), "threads": thread_count(None)}


def _cores_of_all() -> set[int]:
    """The cores that any thread of this process may run on; none where the system does not say it of each."""
    found: set[int] = set()
    with contextlib.suppress(OSError):  # there is no such folder
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # it has ended
                found |= os.sched_getaffinity(int(thread))
    return found


def _bound(cores: set[int]) -> str | None:
    """What to do where this thread may not run on all `cores` that others may, or that it could before a library came.

    The kernels' threads inherit what it may. torch's libgomp binds the thread that imports it.
    """
    from fedcore.ops.rows import available_cores

    if available_cores() >= len(cores):
        return None
    said = [name for name in _BINDING if os.environ.get(name)]
    remedy = f"unset {', '.join(said)}" if said else "give it the cores of the others, which taskset -cp shows"
    return f"threads: this thread may run on {available_cores()} of {len(cores)} cores, and so do all kernels; {remedy}"


def _gpus() -> list[str]:
    """GPUs that torch sees, CUDA or HIP."""
    from fedcore.backends import BROKEN

    try:
        import torch
    except BROKEN:  # which the backend tells, and what to do
        return []
    kind = "HIP" if torch.version.hip else "CUDA"
    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {kind}" for gpu in found]


def _cache() -> tuple[dict[str, Any] | None, str | None]:
    """(the cache's folder and its free space, what to do about it)."""
    from fedcore.federation.machine import cache_folder

    try:
        folder = cache_folder()
    except FedcoreError as error:
        return None, str(error)
    told = {"folder": str(folder), "free_gb": round(shutil.disk_usage(_existing(folder)).free / 1e9, 1)}
    if _writable(folder):
        return told, None
    return told, f"cache: {folder} cannot be written; set FEDCORE_CACHE to a folder that can"


def _existing(folder: Path) -> Path:
    """The folder or the nearest parent that is there."""
    return folder if folder.exists() else _existing(folder.parent)


def _writable(folder: Path) -> bool:
    return (nearest := _existing(folder)).is_dir() and os.access(nearest, os.W_OK)


def _show(found: dict[str, Any]) -> None:
    """The findings as lines, a heading to the left."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    here, kernels = found["machine"], found["kernels"]
    table = Table.grid(padding=(0, 2))
    table.add_row("engine", "[green]works[/]" if found["engine_works"] else "[red]does not work[/]")
    table.add_row(
        "machine", f"{here['platform']}, {here['processor']}, {here['cores']} cores, {here['memory_gib']} GiB"
    )
    for name, state in found["backends"].items():
        table.add_row(f"backend {name}", Text(state, "green" if state == "works" else "yellow"))
    if kernels:
        table.add_row("kernels", f"{kernels['isa']} of {', '.join(kernels['available'])}; {kernels['threads']} threads")
    table.add_row("GPU", "; ".join(found["gpus"]) or "none that torch sees")
    table.add_row("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version))
    cache = found["cache"]
    table.add_row("cache", f"{cache['folder']} ({cache['free_gb']} GB free)" if cache else "none")
    if found["environment"]:
        table.add_row("environment", Text(", ".join(f"{name}={value}" for name, value in found["environment"].items())))
    for line in found["to_do"]:
        # as text, since "fedcore[train]" would be read as markup
        table.add_row("[bold]to do[/]", Text(line))
    Console().print(table)
