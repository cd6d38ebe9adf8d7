"""Attackers who send one adapter many times, in delta space: every rule finds what it finds on dense rows.

Equal adapters are at a distance that is not quite 0 there: QR leaves some 1e-17.
"""

from __future__ import annotations

import numpy as np
import pytest

from fedcore import Update, aggregate
from fedcore.attacks import ALIE, IPM, Gaussian, Mimic, MinMax, MinSum, SignFlip
from fedcore.rules import (
    ARC,
    CenteredClipping,
    FLTrust,
    GeometricMedian,
    Krum,
    MinimumDiameterAveraging,
    MoNNA,
    MultiKrum,
    NormClipping,
    SpectralFilter,
)
from fedcore.rules import NearestNeighborMixing as NNM
from tests.oracles import delta

ATTACKS = [IPM(0.1), IPM(0.5), ALIE(0.3), ALIE(1.0), Mimic(), MinMax(), MinSum(), Gaussian(0.01), SignFlip(2.0)]
RULES = [
    GeometricMedian(),
    ARC(3),
    CenteredClipping(0.05, 3),
    CenteredClipping(1e-3, 3),
    FLTrust(),
    Krum(3),
    MultiKrum(3),
    MinimumDiameterAveraging(3),
    MoNNA(3),
    SpectralFilter(3),
    NNM(3),
    NNM(3).then(Krum(3)),
    NNM(3).then(GeometricMedian()),
    NNM(3).then(SpectralFilter(3)),
    ARC(3).then(GeometricMedian()),
    NormClipping(0.01).then(GeometricMedian()),
]
OUT, IN, RANK = 20, 15, 4


def sent(client: str, a: np.ndarray, b: np.ndarray) -> Update:
    tensors = {"m.lora_A.weight": a.astype(np.float32), "m.lora_B.weight": b.astype(np.float32)}
    return Update.from_tensors(tensors, num_examples=1, client_id=client, scaling={"m": 2.0})


def cohort(seed: int, n: int = 8) -> tuple[list[Update], Update, Update]:
    """(honest clients, what they started from, the server's own update); every second start has B = 0."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((RANK, IN)), rng.standard_normal((OUT, RANK)) * (0.01 if seed % 2 else 0.0)
    common = 0.005 * rng.standard_normal((OUT, RANK))

    def moved(client: str, by: float) -> Update:
        step = common + by * rng.standard_normal((OUT, RANK))
        return sent(client, a + 0.01 * rng.standard_normal((RANK, IN)), b + step)

    return [moved(f"h{i}", 0.01) for i in range(n)], sent("start", a, b), moved("server", 0.003)


def check_as_on_dense_rows(rule, clients: list[Update], reference: Update, server: Update) -> dict:
    """Compares the result in delta space, not truncated, with that on products formed; gives the report."""
    given = {"server": server} if "server" in rule.uses else {}
    result = aggregate(clients, rule, "delta", reference=reference, rank="full", **given)
    rows = delta.rows(clients).astype(np.float32)
    dense = {name: delta.row(update).astype(np.float32) for name, update in given.items()}
    expected = rule(rows, reference=delta.row(reference).astype(np.float32), **dense)
    typical = np.median(np.linalg.norm(delta.rows(clients) - delta.row(reference), axis=1))
    assert np.linalg.norm(delta.row(result.update) - expected) <= 1e-5 * typical
    return result.report


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_the_geometric_median_under_an_attack_is_that_of_dense_rows(attack):
    for seed in range(4):
        clients, reference, server = cohort(seed)
        own = [sent(f"z{i}", reference.tensors["m.lora_A.weight"], np.ones((OUT, RANK))) for i in range(2)]
        attackers = attack.on_updates(clients, own, reference)
        report = check_as_on_dense_rows(GeometricMedian(), [*clients, *attackers], reference, server)
        assert report["converged"]
        assert report["noise"] <= 2.0**-22 * 10


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("what", ["attack", "one honest adapter", "two honest adapters", "the start"])
def test_a_rule_on_equal_adapters_finds_what_it_finds_on_equal_rows(rule, what):
    for seed in range(3):
        clients, reference, server = cohort(seed)
        names = ["z0", "z1", "z2"]
        if what == "attack":
            own = [
                sent(name, reference.tensors["m.lora_A.weight"], reference.tensors["m.lora_B.weight"]) for name in names
            ]
            copies = IPM(0.1).on_updates(clients, own, reference)
        else:
            of = {"one honest adapter": [clients[2]] * 3, "two honest adapters": [*clients[:2], clients[0]]}
            copied = of.get(what, [reference] * 3)
            copies = [
                sent(name, update.tensors["m.lora_A.weight"], update.tensors["m.lora_B.weight"])
                for name, update in zip(names, copied, strict=True)
            ]
        check_as_on_dense_rows(rule, [*clients, *copies], reference, server)
