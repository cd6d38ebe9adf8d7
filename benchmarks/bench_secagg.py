"""A secure sum: a client's set-up, its mask stage beside Flower's SecAgg+, bytes on the wire, a server's whole round.

`--record DIR` runs the clients of the server's round once and keeps what they sent (3 GB); `--replay DIR` times a
server on it. Without either: what a client does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
from bench_mask_add import flower
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from measure import RESULTS, alternate, require_green, save

import fedcore as fc
from fedcore.privacy.secagg.simulate import answer

CLIENTS, LENGTH, BOUND, GONE = 1000, 1_000_000, 32767, 50
WIDE = 10_000_000
ROUND = (b"bench", 0, bytes(32))
STREAM = "aes256ctr"


def keys_of(count: int) -> dict[int, Ed25519PrivateKey]:
    return {i: Ed25519PrivateKey.from_private_bytes((i + 1).to_bytes(32, "big")) for i in range(count)}


def round_of(p: fc.secagg.Parameters) -> tuple[fc.secagg.Server, dict[int, fc.secagg.Client]]:
    keys = keys_of(p.clients)
    roster = fc.secagg.Roster({i: key.public_key().public_bytes_raw() for i, key in keys.items()})
    clients = {i: fc.secagg.Client(p, i, key, roster, *ROUND) for i, key in keys.items()}
    return fc.secagg.Server(p, roster, *ROUND), clients


def parameters(adversary: str = "semi_honest", length: int = LENGTH) -> fc.secagg.Parameters:
    """About 100 neighbours: a fifth of the clients corrupt and a fifth dropping out, or a tenth each, malicious."""
    part = 0.2 if adversary == "semi_honest" else 0.1
    return fc.secagg.Parameters.choose(
        CLIENTS, length=length, bound=BOUND, corrupt=part, dropout=part, adversary=adversary, stream=STREAM
    )


def setup(adversary: str) -> dict[str, object]:
    """`advertise` and `share` of one client of 1,000, as sum and apart; the median of twenty clients."""
    p = parameters(adversary, 1)
    server, clients = round_of(p)
    start = time.perf_counter()
    for i, client in clients.items():
        server.receive(i, client.advertise())
    both = time.perf_counter() - start
    start = time.perf_counter()
    messages = server.advance()
    after = time.perf_counter() - start
    some = [i for i in range(0, CLIENTS, CLIENTS // 20) if i in messages]
    about = (server.round.roster, *ROUND)
    advertise = alternate({"": lambda: fc.secagg.Client(p, 0, keys_of(1)[0], *about).advertise()}, 5)
    shares = []
    for i in some:
        start = time.perf_counter()
        clients[i].share(messages[i])
        shares.append(time.perf_counter() - start)
    found = {"neighbours": p.neighbours, "threshold": p.threshold, "share": float(np.median(shares))}
    found["advertise, with all keys"] = advertise[""]["median"]
    found["a client"] = found["advertise, with all keys"] + found["share"]
    found["server, all advertisements, with making them"] = both
    found["server, answering all"] = after
    found["bytes to a client"] = len(messages[some[0]])
    return found


def client(results: dict[str, object]) -> None:
    """The whole mask stage of one of ten clients: tag, quantise, mask, pack, sign; beside Flower's arithmetic alone."""
    p = fc.secagg.Parameters.choose(10, length=WIDE + 1, bound=BOUND, stream=STREAM)
    p = fc.secagg.Parameters(**({name: getattr(p, name) for name in p.__dataclass_fields__} | {"modulus_bits": 26}))
    server, clients = round_of(p)
    quantizer = fc.secagg.Quantizer(BOUND, 4.0)
    values = np.random.default_rng(0).normal(size=WIDE).astype(np.float32)
    messages = dict.fromkeys(clients, b"")
    for stage in ("advertise", "share"):
        for i, message in messages.items():
            for data in answer(clients[i], stage, message, None):
                server.receive(i, data)
        messages = server.advance()
    sent: list[int] = []

    def ours() -> None:
        sent[:] = [len(data) for data in clients[0].mask(messages[0], quantizer.weighted(values))]

    keys = [os.urandom(32) for _ in range(10)]
    times = alternate({"fedcore": ours}, 5) | alternate({"Flower": flower(values, keys)}, 2)
    bits = p.length * p.modulus_bits / 8
    results["client stage, n=10"] = times | {
        "times as fast as Flower": times["Flower"]["median"] / times["fedcore"]["median"]
    }
    results["wire"] = {
        "bytes": sum(sent),
        "bits a coordinate": 8 * sum(sent) / p.length,
        "overhead": sum(sent) / bits - 1,
    }


def record(folder: Path) -> None:
    """Run all clients, keep their messages: one file a stage and client, in the order of their chunks."""
    p = parameters()
    server, clients = round_of(p)
    messages, rng = dict.fromkeys(clients, b""), np.random.default_rng(1)
    expected = np.zeros(LENGTH, np.int64)
    for stage in p.stages:
        (folder / stage).mkdir(parents=True, exist_ok=True)
        for i, message in messages.items():
            if i < GONE and stage == "mask":
                continue
            vector = rng.integers(-BOUND, BOUND + 1, LENGTH) if stage == "mask" else None
            if vector is not None:
                expected += vector
            with (folder / stage / str(i)).open("wb") as file:
                for data in answer(clients[i], stage, message, vector):
                    file.write(len(data).to_bytes(8, "little") + data)
                    if stage != "mask":
                        server.receive(i, data)
            if stage == "mask":  # the sum is not needed here
                server._done.add(i)
        messages = server.advance()
    np.save(folder / "sum.npy", expected)


def _recorded(path: Path):
    with path.open("rb") as file:
        while head := file.read(8):
            yield file.read(int.from_bytes(head, "little"))


def replay(folder: Path, results: dict[str, object]) -> None:
    """Every message that the server gets, with reading them left out of the time."""
    p = parameters()
    keys = keys_of(p.clients)
    roster = fc.secagg.Roster({i: key.public_key().public_bytes_raw() for i, key in keys.items()})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    server = fc.secagg.Server(p, roster, *ROUND)
    spent: dict[str, float] = {}
    for stage in p.stages:
        took = 0.0
        for path in sorted((folder / stage).iterdir(), key=lambda path: int(path.name)):
            for data in _recorded(path):
                start = time.perf_counter()
                server.receive(int(path.name), data)
                took += time.perf_counter() - start
        start = time.perf_counter()
        server.advance()
        spent[stage] = took + time.perf_counter() - start
    start = time.perf_counter()
    found = server.result()
    spent["result"] = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (found.sum == np.load(folder / "sum.npy")).all()
    results["server, whole round"] = {
        "clients": CLIENTS,
        "length": LENGTH,
        "dropouts": GONE,
        "neighbours": p.neighbours,
        "seconds": spent,
        "all": sum(spent.values()),
        "peak MB above the start": (after - before) / 1024,
        "MB of the output": found.sum.nbytes / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--replay", type=Path)
    chosen = parser.parse_args()
    if chosen.record:
        record(chosen.record)
        return
    path = RESULTS / "secagg.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    if chosen.replay:
        replay(chosen.replay, results)
    else:
        require_green("secagg", "secagg/test_rounds.py")
        results["set-up of a client"] = {adversary: setup(adversary) for adversary in ("semi_honest", "malicious")}
        client(results)
    save("secagg", results, ("flwr",))


if __name__ == "__main__":
    main()
