"""Partitions: every example once, no client too small, the same seed the same shares, label skew that follows alpha."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcore.errors import ConfigError
from fedcore.federation.config_data import Partition
from fedcore.federation.partition import dirichlet, partition

LABELS = [["tea", "coffee", "water", "milk"][i % 4] for i in range(4000)]


def shares(labels=LABELS, seed=0, **options):
    return partition(labels, Partition(**options), seed)


def skew(parts) -> float:
    """Mean share of a client's most frequent label; 0.25 is even."""
    labels = np.array(LABELS)
    return float(np.mean([max(np.unique(labels[p.indices], return_counts=True)[1]) / len(p.indices) for p in parts]))


@given(
    st.lists(st.sampled_from("abc"), min_size=60, max_size=300),
    st.sampled_from(["iid", "dirichlet"]),
    st.integers(1, 6),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_every_example_goes_to_exactly_one_client(labels, kind, clients, seed):
    skew = {"alpha": 1.0} if kind == "dirichlet" else {}
    parts = shares(labels, seed, kind=kind, clients=clients, min_examples=2, **skew)
    together = np.concatenate([part.indices for part in parts])
    assert sorted(together) == list(range(len(labels)))
    assert len(parts) == clients
    assert min(len(part.indices) for part in parts) >= 2


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_the_seed_decides(kind):
    one, same, other = (shares(kind=kind, clients=5, seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a.indices, b.indices) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a.indices, b.indices) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_a_client_holds_its_texts_in_the_order_of_the_file(kind):
    for share in shares(["a", "b"] * 40, 2, kind=kind, clients=3):
        assert (np.diff(share.indices) > 0).all()


def test_texts_of_one_label_are_dealt_at_random_and_not_in_the_order_of_the_file():
    parts = dirichlet(["a"] * 400, 4, 1e6, 1, np.random.default_rng(0))
    # each has texts from the file's first and last tenth
    assert all(part.min() < 40 and part.max() >= 360 for part in parts)


def test_as_many_texts_as_are_asked_for_are_enough():
    parts = dirichlet(["a"] * 8, 8, 1e9, 1, np.random.default_rng(0))
    assert [len(part) for part in parts] == [1] * 8


def test_proportions_are_rounded_to_the_nearest_count():
    assert [len(part) for part in dirichlet(["a"] * 8, 3, 1e9, 1, np.random.default_rng(0))] == [3, 2, 3]


def test_iid_is_even():
    parts = shares(kind="iid", clients=7)
    sizes = [len(part.indices) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert skew(parts) < 0.32


def test_dirichlet_skews_labels_and_amounts_more_for_small_alpha():
    even, skewed = (shares(kind="dirichlet", clients=8, alpha=alpha) for alpha in (100.0, 0.2))
    assert skew(even) < 0.35 < 0.55 < skew(skewed)
    sizes = [len(part.indices) for part in skewed]
    assert max(sizes) > 2 * min(sizes)


def test_a_column_makes_one_client_per_value():
    parts = shares(kind="column", column="drink")
    assert [set(np.array(LABELS)[part.indices]) for part in parts] == [{"coffee"}, {"milk"}, {"tea"}, {"water"}]
    assert [part.client_id for part in parts] == [f"client-{i}" for i in range(4)]


def test_ids_sort_as_clients_are_numbered():
    ids = [part.client_id for part in shares(kind="iid", clients=12)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 12


@pytest.mark.parametrize(("clients", "first", "last"), [(1, "0", "0"), (10, "0", "9"), (11, "00", "10")])
def test_ids_are_no_wider_than_the_last_needs(clients, first, last):
    ids = [part.client_id for part in shares(kind="iid", clients=clients)]
    assert (ids[0], ids[-1]) == (f"client-{first}", f"client-{last}")


def test_what_cannot_be_is_said_by_key():
    with pytest.raises(ConfigError, match=r"partition\.min_examples: 10 texts cannot give 8 clients 16 each"):
        shares(LABELS[:10], clients=8)
    with pytest.raises(ConfigError, match=r"partition\.alpha: no draw of Dir\(0\.01\)"):
        shares(LABELS[:140], kind="dirichlet", clients=8, alpha=0.01)
    with pytest.raises(ConfigError, match=r"client-1 would hold 1 texts, expected at least 16"):
        shares(["a"] * 50 + ["b"], kind="column", column="x")
