"""A secure sum: a client's set-up, its mask stage beside Flower's SecAgg+, bytes on the wire, a server's whole round.

What a client does takes one thread, the server's round all cores.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest.mock import patch

import numpy as np
from bench_mask_add import flower
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from measure import alternate, require_green, save

import fedcore as fc
from fedcore.privacy.secagg import client as client_module
from fedcore.privacy.secagg.keys import agreed, hkdf, verified
from fedcore.privacy.secagg.masking import mask_keys
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


def primitives() -> dict[str, float]:
    """Seconds that `cryptography` takes for one of each thing that a set-up is made of."""
    signing, mine = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
    public, other = signing.public_key().public_bytes_raw(), X25519PrivateKey.generate().public_key().public_bytes_raw()
    text, box = bytes(120), ChaCha20Poly1305(bytes(32))
    signature = signing.sign(text)
    works = {
        "Ed25519 verification": lambda: verified(public, signature, text),
        "X25519": lambda: agreed(mine, other, "the other key"),
        "HKDF": lambda: hkdf(other, "pair", text),
        "seal": lambda: box.encrypt(bytes(12), bytes(64), bytes(36)),
    }
    many = {name: lambda work=work: [work() for _ in range(100)] for name, work in works.items()}
    return {name: entry["median"] / 100 for name, entry in alternate(many).items()}


def setup(adversary: str) -> dict[str, object]:
    """`advertise` and `share` of one client of 1,000, as sum and apart; the median of a hundred clients."""
    p = parameters(adversary, 1)
    server, clients = round_of(p)
    start = time.perf_counter()
    for i, client in clients.items():
        server.receive(i, client.advertise())
    both = time.perf_counter() - start
    start = time.perf_counter()
    messages = dict(server.advance())
    after = time.perf_counter() - start
    gc.collect()
    gc.freeze()  # a process has one client, and no others for its garbage collector to look through
    some = [i for i in range(0, CLIENTS, CLIENTS // 100) if i in messages]
    about = (server.round.roster, *ROUND)
    signing = keys_of(1)[0]  # which a client has had for long
    advertise = alternate({"": lambda: fc.secagg.Client(p, 0, signing, *about).advertise()}, 20)
    shares = []
    for i in some:
        start = time.perf_counter()
        clients[i].share(messages[i])
        shares.append(time.perf_counter() - start)
    found = {"neighbours": p.neighbours, "threshold": p.threshold, "share": float(np.median(shares))}
    found["advertise, with all keys"] = advertise[""]["median"]
    found["a client"] = found["advertise, with all keys"] + found["share"]
    holders = len(set(clients[some[0]]._holders) & clients[some[0]]._peers.keys())
    checked = len(clients[some[0]]._peers) if adversary == "malicious" else 0
    counts = {"Ed25519 verification": checked, "X25519": holders + 1, "HKDF": holders + 1, "seal": holders}
    each = primitives()
    found["counts"], found["seconds of one"] = counts, each
    found["least by these"] = sum(count * each[name] for name, count in counts.items())
    found["server, all advertisements, with making them"] = both
    found["server, answering all"] = after
    found["bytes to a client"] = len(messages[some[0]])
    gc.unfreeze()
    return found


def flower_stage(values: np.ndarray, others: int) -> Callable[[], object]:
    """Flower's own function for this stage, whole: shares opened, weighed, quantised, masked, serialised."""
    from flwr.common import ConfigRecord, ndarrays_to_parameters
    from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat

    mod = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")  # a function has its name
    state, (secret, _) = mod.SecAggPlusState(), mod.generate_key_pairs()
    state.nid, state.threshold, state.max_weight = 0, others // 2, 1.0
    state.clipping_range, state.target_range, state.mod_range = 4.0, 2 * BOUND, 1 << 26
    state.sk1, state.rd_seed = mod.private_key_to_bytes(secret), os.urandom(32)
    state.rd_seed_share_dict, state.sk1_share_dict = {}, {}
    state.ss2_dict, state.public_keys_dict, sealed = {}, {}, []
    for i in range(1, others + 1):
        _, theirs = mod.generate_key_pairs()
        state.public_keys_dict[i] = mod.public_key_to_bytes(theirs), b""
        state.ss2_dict[i] = mod.generate_shared_key(secret, theirs)
        sealed.append(mod.encrypt(state.ss2_dict[i], share_keys_plaintext_concat(i, 0, bytes(40), bytes(350))))
    sent = ConfigRecord({mod.Key.CIPHERTEXT_LIST: sealed, mod.Key.SOURCE_LIST: list(range(1, others + 1))})
    update = ndarrays_to_parameters([values])
    return lambda: mod._collect_masked_vectors(state, sent, 1, update)


def client(results: dict[str, object]) -> None:
    """The whole mask stage of one of ten clients, from its vector to its messages; beside Flower's, whole and its
    arithmetic alone."""
    p = fc.secagg.Parameters.choose(10, length=WIDE + 1, bound=BOUND, stream=STREAM)
    p = fc.secagg.Parameters(**({name: getattr(p, name) for name in p.__dataclass_fields__} | {"modulus_bits": 26}))
    server, clients = round_of(p)
    quantizer = fc.secagg.Quantizer(BOUND, 4.0)
    values = np.random.default_rng(0).normal(size=WIDE).astype(np.float32)
    messages: Mapping[int, bytes] = dict.fromkeys(clients, b"")
    for stage in ("advertise", "share"):
        for i, message in messages.items():
            for data in answer(clients[i], stage, message, None):
                server.receive(i, data)
        messages = server.advance()
    sent: list[int] = []
    first = messages[0]

    def ours() -> None:
        sent[:] = [len(data) for data in clients[0].mask(first, quantizer.weighted(values))]

    keys = [os.urandom(32) for _ in range(10)]
    times = alternate({"fedcore": ours}, 9) | alternate(
        {"Flower": flower_stage(values, 9), "Flower, arithmetic": flower(values, keys)}, 2
    )
    bits = p.length * p.modulus_bits / 8
    ours_median = times["fedcore"]["median"]
    results["client stage, n=10"] = times | {
        "times as fast as Flower": times["Flower"]["median"] / ours_median,
        "times as fast as Flower's arithmetic": times["Flower, arithmetic"]["median"] / ours_median,
    }
    results["wire"] = {
        "bytes": sum(sent),
        "bits a coordinate": 8 * sum(sent) / p.length,
        "overhead": sum(sent) / bits - 1,
    }


def peak() -> int:
    """Bytes of the most memory that this process had; ru_maxrss begins with what its parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def serve(pipe, clients: int) -> None:
    """A server in a process of its own: its time without the pipe's, and what its memory grew by."""
    p, spent = parameters(), {}
    roster = fc.secagg.Roster({i: key.public_key().public_bytes_raw() for i, key in keys_of(clients).items()})
    before = peak()
    server = fc.secagg.Server(p, roster, *ROUND)
    pipe.send(None)
    while (message := pipe.recv()) is not None:
        stage, start = server.stage, time.perf_counter()
        answer = server.advance() if message == () else server.receive(*message)
        spent[stage] = spent.get(stage, 0.0) + time.perf_counter() - start
        if message == ():
            pipe.send(list(answer))
            for name in answer:  # each is made here, and sent before the next one
                start = time.perf_counter()
                data = answer[name]
                spent[stage] += time.perf_counter() - start
                pipe.send(data)
    start = time.perf_counter()
    found = server.result()
    spent["result"] = time.perf_counter() - start
    pipe.send((found.sum, spent, (peak() - before) / 1e6))


def corrected(p: fc.secagg.Parameters, clients: dict, there: list[int], plain: np.ndarray) -> np.ndarray:
    """What the masked vectors of `there` add up to: the plain sum with the masks that do not cancel."""
    keys, signs = [], []
    for i in there:
        c = clients[i]
        left = [j for j in c._partners if j < GONE]
        own, sign = mask_keys(c._keys, c._tag, c._me, left, c._peers, c.round.roster.ids)
        keys.append(own)
        signs.extend(sign.tolist())
    return fc.ops.mask_add(plain, np.concatenate(keys), signs, p.modulus_bits, stream=p.stream)


def server(results: dict[str, object]) -> None:
    """A round of 1,000 × 10⁶ in which 50 send no vector, its server alone in a process.

    Keys, shares and signatures are real. A client's masked vector is uniform, and here it is drawn at random; the last
    one is what makes all add up as true ones would. So a server does what it always does, and the sum is checked.
    """
    p = parameters()
    _, clients = round_of(p)
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=serve, args=(other, CLIENTS), daemon=True)  # an error here ends it
    process.start()
    pipe.recv()
    messages, rng = dict.fromkeys(clients, b""), np.random.default_rng(1)
    plain = rng.integers(-BOUND * 900, BOUND * 900, LENGTH)
    vector, dtype = np.zeros(LENGTH, np.int64), np.uint32
    for stage in p.stages:
        there = [i for i in messages if stage != "mask" or i >= GONE]
        if stage == "mask":
            # what a client masks is set below: here it opens its shares
            with patch.object(client_module, "masked", lambda *_: np.zeros(1, np.uint8)):
                for i in there:
                    clients[i].mask(messages[i], vector)
            left = corrected(p, clients, there, plain)
        for i in there:
            if stage != "mask":
                (data,) = answer(clients[i], stage, messages[i], None)
                pipe.send((i, data))
                continue
            drawn = rng.integers(0, 1 << p.modulus_bits, LENGTH, dtype)
            left -= drawn
            shown = (left + drawn if i == there[-1] else drawn) & np.uint32((1 << p.modulus_bits) - 1)
            for data in clients[i]._chunks([], fc.ops.pack_bits(shown, p.modulus_bits)):
                pipe.send((i, data))
        pipe.send(())
        messages = {name: pipe.recv() for name in pipe.recv()}
    pipe.send(None)
    found, spent, memory = pipe.recv()
    process.join()
    assert (found == plain).all()
    results["server, whole round"] = {
        "clients": CLIENTS,
        "length": LENGTH,
        "dropouts": GONE,
        "neighbours": p.neighbours,
        "seconds": spent,
        "all": sum(spent.values()),
        "peak MB above the start": memory,
        "MB of the output": found.nbytes / 1e6,
    }


def main() -> None:
    require_green("secagg", "secagg/test_rounds.py")
    results: dict[str, object] = {"threads of a client": 1}
    os.environ["FEDCORE_NUM_THREADS"] = "1"
    results["set-up of a client"] = {adversary: setup(adversary) for adversary in ("semi_honest", "malicious")}
    client(results)
    del os.environ["FEDCORE_NUM_THREADS"]
    server(results)
    save("secagg", results, ("flwr",))


if __name__ == "__main__":
    main()
