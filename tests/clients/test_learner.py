"""The real clients behind the seam of the rounds: what QLoRALearner checks beside training."""

from __future__ import annotations

import pytest
import torch

from fedcore.clients import training
from fedcore.errors import TrainingError
from fedcore.federation.config_file import parse_config
from fedcore.federation.data import Client, Texts
from fedcore.federation.learner import QLoRALearner

CONFIG = """
[model]
source = "{directory}"
device = "cpu"
[adapter]
rank = 2
[training]
batch_size = 2
sequence_length = 16
"""


def test_a_base_that_changes_while_a_client_trains_is_found_before_its_update_counts(
    tiny_directory, texts, monkeypatch
):
    client = Client("client-0", tuple(texts), {"": len(texts)})
    config = parse_config(CONFIG.format(directory=tiny_directory), "c.toml")
    learner = QLoRALearner(config, Texts((client,), (), tuple(texts[:2]), ()), lambda *_, **__: None)
    assert learner.train(learner.initial(), client, 1, 0).num_examples == len(texts)
    real = training.train

    def writes_to_the_base(base, *arguments, **options):
        result = real(base, *arguments, **options)
        with torch.no_grad():
            base.model.get_input_embeddings().weight[0, 0] += 1
        return result

    monkeypatch.setattr(training, "train", writes_to_the_base)
    with pytest.raises(TrainingError, match="its frozen weights hash to"):
        learner.train(learner.initial(), client, 1, 0)
