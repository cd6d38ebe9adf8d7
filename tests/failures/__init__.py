"""Failures that were found in other frameworks: inputs that bring each out, the framework's formula in a few lines, and
what fedcore makes of the same inputs.

tests/test_peer_failures.py asserts that each formula is wrong on its inputs and fedcore is not;
benchmarks/peer_failures.py calls the frameworks that are installed on the same inputs.
"""

from __future__ import annotations

import numpy as np

import fedcore as fc
from failures import central, clipping, distances, lora, masks, precision
from failures.finding import Case

FLOWER, NVFLARE, BYZFL = "Flower 1.41", "NVFlare 2.9", "ByzFL 0.0.11"

CASES = [
    Case("krum distances", FLOWER, "Krum's distances, uncentred in fp32", distances.distances_there,
         distances.distances_here),
    Case("krum selections", FLOWER, "Krum on updates 200 times smaller than weights",
         lambda: distances.selections(distances.krum_of(distances.uncentred)),
         lambda: distances.selections(distances.krum_here)),
    Case("krum malicious", FLOWER, "Krum on updates 20,000 times smaller, 2 of 12 malicious",
         lambda: distances.malicious(distances.krum_of(distances.uncentred)),
         lambda: distances.malicious(distances.krum_here)),
    Case("krum self", FLOWER, "Krum's scores drop whoever sorts first", distances.not_first, distances.self_here),
    Case("bf16 tensors", FLOWER, "bf16 tensors", precision.bf16_refused, precision.bf16_here),
    Case("fp16 mean", FLOWER, "mean of 64 fp16 clients", precision.fp16_there,
         lambda: precision.exactly_rounded(precision.fp16_rows(), precision.COUNTS, "float16")),
    Case("zero clipping", FLOWER, "clipping of an update that is zero", clipping.zero_there, clipping.zero_here),
    Case("nan clipping", FLOWER, "clipping of an update with NaN", clipping.nan_clip_there,
         lambda: clipping.refused(lambda: fc.rules.NormClipping(1.0)([np.array([np.nan, 1], np.float32)]))),
    Case("fp16 counts", NVFLARE, "mean of two fp16 clients of 40,000 examples", precision.overflow_there,
         precision.overflow_here),
    Case("bf16 mean", NVFLARE, "mean of 64 bf16 clients", precision.bf16_there,
         lambda: precision.exactly_rounded(precision.bf16_rows(), precision.COUNTS, "bfloat16")),
    Case("nan rules", BYZFL, "one client sends NaN", clipping.nan_rules_there, clipping.nan_rules_here),
    Case("distances above 25", BYZFL, "Krum's distances of more than 25 torch rows",
         lambda: distances.many_there(), distances.many_here),
    Case("mutation", BYZFL, "clipping and the caller's rows", lambda: clipping.mutation(clipping.clipped_in_place),
         lambda: clipping.mutation(lambda rows: fc.rules.NormClipping(1.0)(list(rows)))),
    Case("short rows", BYZFL, "geometric median of changes under 0.1",
         lambda: central.away_from_honest(central.smoothed_median(central.short_rows(), 0.1, 3)),
         lambda: central.away_from_honest(fc.rules.GeometricMedian()(central.short_rows()))),
    Case("extremes subtracted", "FederatedScope", "trimmed mean beside an attacker at 1e6",
         lambda: central.trimmed_error(central.total_minus_extremes()),
         lambda: central.trimmed_error(fc.rules.TrimmedMean(1)(central.with_attacker()))),
    Case("clients dropped", "FedML", "trimmed mean by clients' example counts",
         lambda: central.trimmed_error(central.dropped_clients()),
         lambda: central.trimmed_error(central.attacker_with_middle_count())),
    Case("lower median", "FedML", "median of an even number of clients",
         lambda: central.median_of(float(np.sort(central.EVEN[:, 0])[1])),
         lambda: central.median_of(float(fc.rules.Median()(central.EVEN)[0]))),
    Case("stuck", "OpenFL", "geometric median", lambda: central.sum_of_distances(central.compounded(100)),
         lambda: central.sum_of_distances(fc.rules.GeometricMedian()(central.POINTS))),
    Case("weights after masks", "APPFL", "secure weighted mean of two clients", masks.weighted_after_masking,
         masks.weighted_before_masking),
    Case("scalar mask", "OpenFL", "what a masked update shows of it", masks.one_number_as_mask, masks.a_stream_as_mask),
    Case("misspelt name", "FederatedLLM", "FedIT's mean of adapters", lora.only_the_first, lora.all_of_them),
    Case("transposed residual", "FedEx", "the residual of the mean on a square Linear", lora.transposed_residual,
         lambda: lora.mean_here((1.0, 1.0))),
    Case("no scale", "NVFlare HLoRA", "mean of B·A where alpha/r differs", lora.without_scales,
         lambda: lora.mean_here((2.0, 0.5))),
    Case("fixed scale", "FlexLoRA", "mean of B·A with alpha other than 16", lora.fixed_scales,
         lambda: lora.mean_here((2.0, 2.0))),
]  # fmt: skip
