"""Bucketing: rows are shuffled into small buckets, and their means go on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedcore.errors import RuleError
from fedcore.numbers import as_whole, got, keep
from fedcore.rules.composition import Mixing, PreAggregation
from fedcore.rules.geometry import Geometry
from fedcore.rules.parameters import check_count


@dataclass(frozen=True)
class Bucketing(PreAggregation):
    """y_b = the mean of bucket b, ⌈n/s⌉ buckets of s rows in a random order, the last of what is left.

    `Bucketing(2, seed=7).then(Krum(f=2))`: means of s rows differ less than rows do, so a robust rule after it loses
    less to clients with different data. The order is that of SHA-256(seed, round, row), a function of nothing else: an
    auditor gets the same buckets on any machine. Take a new round number for each round (`for_round`), and keep the
    seed from clients until they have sent: who knows the buckets can place attackers in them.

    Weights: a rule that ignores them gets plain means. A rule that uses them gets each bucket's mean weighted by its
    clients and their sum as its weight, so that `Bucketing(s, seed).then(Mean())` is the weighted mean of all. Alone it
    is the plain mean of the buckets' means.

    Breakdown point: f Byzantine clients spoil at most f of the ⌈n/s⌉ buckets, so the rule that follows must bear f of
    those: s times fewer clients than without. s = 1 only shuffles. Needs n ≥ 1. Cost: nothing on the data. Karimireddy,
    He and Jaggi 2022, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR, Algorithm 1 (which
    divides a last, smaller bucket by s too; here, as in ByzFL, by its size).
    """

    s: int
    seed: int
    round: int = 0
    keeps_rows: ClassVar[bool] = False

    def __post_init__(self) -> None:
        keep(self, s=check_count("Bucketing", "s", self.s, 1))
        keep(self, round=check_count("Bucketing", "round", self.round, 0))
        seed = as_whole(self.seed)
        if seed is None:
            raise RuleError(f"{got('seed', self.seed, 'Bucketing')}, expected a whole number")
        keep(self, seed=seed)

    def rows(self, clients: int) -> int:
        """⌈n/s⌉."""
        return -(-clients // self.s)

    def for_round(self, number: int) -> Bucketing:
        """The same with the buckets of round `number`."""
        return replace(self, round=number)

    def order(self, clients: int) -> list[int]:
        """The rows as they go into buckets: sorted by SHA-256 of 'seed:round:row' in ASCII decimals."""
        start = f"{self.seed}:{self.round}:"
        return sorted(range(clients), key=lambda row: hashlib.sha256(f"{start}{row}".encode()).digest())

    def mixing(self, geometry: Geometry, weights: np.ndarray | None) -> Mixing:
        """The mean of each bucket, and where there are weights their sums."""
        n, order = geometry.clients, self.order(geometry.clients)
        buckets = [order[start : start + self.s] for start in range(0, n, self.s)]
        matrix = np.zeros((len(buckets), n + geometry.references))
        for row, bucket in zip(matrix, buckets, strict=True):
            share = np.ones(len(bucket)) if weights is None else weights[bucket]
            row[bucket] = share / share.sum()
        numbers = np.empty(n, int)
        for number, bucket in enumerate(buckets):
            numbers[bucket] = number
        sums = None if weights is None else np.array([weights[bucket].sum() for bucket in buckets])
        return Mixing(matrix, sums, {"buckets": len(buckets)}, {"bucket": numbers})
