"""Rounds, masked and private ones too, and clients alone train by what a client is drawn by, not by its number."""

from dataclasses import replace

import fake_learner as fake
import pytest
from fake_runs import simulate

from fedcore.errors import LayoutError
from fedcore.federation.messages import client_seed


class Seeds(fake.FakeLearner):
    def __init__(self):
        super().__init__()
        self.seeds = []

    def train(self, adapter, client, steps, seed, *others, **options):
        self.seeds.append(seed)
        return super().train(adapter, client, steps, seed, *others, **options)


def test_what_a_client_is_drawn_by_seeds_its_training(tmp_path):
    texts, learner, config = fake.texts(), Seeds(), fake.config()
    named = replace(texts, clients=tuple(replace(c, drawn=f"label {c.id}") for c in texts.clients))
    simulate(tmp_path / "run", learner=learner, config=config, texts=named)
    wanted = {client_seed(config, number, client.drawn) for number in range(4) for client in named.clients}
    assert set(learner.seeds) == wanted


def test_a_run_whose_clients_are_drawn_by_others_is_not_gone_on_with(tmp_path):
    texts = fake.texts()
    simulate(tmp_path / "run", texts=texts)
    named = replace(texts, clients=tuple(replace(c, drawn=f"label {c.id}") for c in texts.clients))
    with pytest.raises(LayoutError, match="the texts changed"):
        simulate(tmp_path / "run", texts=named, resume=True)
