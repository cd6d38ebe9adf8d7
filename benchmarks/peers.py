"""What other frameworks do with the same inputs. Each function returns a callable that does one aggregation."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np


def flower_messages(rows: Iterable[np.ndarray], counts: list[int]) -> list:
    """Flower RecordDicts as they arrive: an ArrayRecord whose Array holds .npy bytes, a MetricRecord with the count."""
    from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

    return [
        RecordDict({"arrays": ArrayRecord({"w": Array(row)}), "metrics": MetricRecord({"num-examples": count})})
        for row, count in zip(rows, counts, strict=True)
    ]


def flower(messages: list) -> Callable[[], object]:
    """flwr.serverapp.strategy.strategy_utils.aggregate_arrayrecords, what FedAvg calls."""
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    return lambda: aggregate_arrayrecords(messages, "num-examples")


def flower_private(messages: list, size: int, noise_multiplier: float, clip: float) -> Callable[[], object]:
    """flwr's DifferentialPrivacyServerSideFixedClipping around FedAvg: aggregate_train of these contents."""
    import logging
    from types import SimpleNamespace

    from flwr.app import Array, ArrayRecord, RecordDict
    from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

    logging.getLogger("flwr").setLevel(logging.ERROR)
    strategy = DifferentialPrivacyServerSideFixedClipping(FedAvg(), noise_multiplier, clip, len(messages))
    strategy.current_arrays = ArrayRecord({"w": Array(np.zeros(size, np.float32))})

    def reply(client: int, content: object) -> object:
        # what aggregate_train reads of a Message; it puts clipped records into the content, so each call gets its own
        return SimpleNamespace(
            content=RecordDict(dict(content.items())),  # type: ignore[attr-defined]
            has_error=lambda: False,
            has_content=lambda: True,
            metadata=SimpleNamespace(src_node_id=client),
        )

    return lambda: strategy.aggregate_train(1, [reply(i, content) for i, content in enumerate(messages)])


def opendp_discrete_gaussian(size: int, sigma: float) -> Callable[[], object]:
    """OpenDP's Gaussian measurement over a vector of integers, called from Python: its samples are added to zeros."""
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l2_distance(T=float)
    measurement, zeros = dp.m.make_gaussian(*space, scale=float(sigma)), [0] * size
    return lambda: measurement(zeros)


def fedcore_from_flower_bytes(messages: list, out: np.ndarray, threads: int) -> Callable[[], object]:
    """fedcore on the same message bytes: the .npy header is parsed, the data is read where it lies."""
    import fedcore as fc

    def row(message) -> np.ndarray:
        data = next(iter(message.array_records.values()))["w"].data
        length = int.from_bytes(
            data[8:10], "little"
        )  # .npy format version 1: magic (6), version (2), header length (2)
        return np.frombuffer(data, np.float32, offset=10 + length)

    def work() -> object:
        counts = [next(iter(m.metric_records.values()))["num-examples"] for m in messages]
        return fc.ops.weighted_sum([row(m) for m in messages], counts, sum(counts), out=out, threads=threads)

    return work


def nvflare(rows: list[np.ndarray], counts: list[int]) -> Callable[[], object]:
    """nvflare's WeightedAggregationHelper over one torch tensor a client."""
    import torch
    from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

    tensors = [torch.from_numpy(row) for row in rows]

    def work() -> object:
        helper = WeightedAggregationHelper()
        for i, (tensor, count) in enumerate(zip(tensors, counts, strict=True)):
            helper.add({"w": tensor}, count, f"client-{i}", 0)
        return helper.get_result()

    return work


def byzfl_aggregator(name: str, **arguments: object) -> Callable[[object], object]:
    """An aggregator of ByzFL over a matrix. Its own __init__ wants torchvision for training, which this leaves out."""
    import importlib
    import importlib.util
    import sys
    import types

    if "byzfl" not in sys.modules:
        spec = importlib.util.find_spec("byzfl")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("byzfl is not installed; install fedcore[bench]")
        package = types.ModuleType("byzfl")
        package.__path__, package.__spec__ = list(spec.submodule_search_locations), spec
        sys.modules["byzfl"] = package
    return getattr(importlib.import_module("byzfl.aggregators"), name)(**arguments)
