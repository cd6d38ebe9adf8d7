"""The public ops: each validates once, selects a backend and calls it."""

from fedcore.ops.exact_sum import ExactSum
from fedcore.ops.gram import gram, gram_epsilon
from fedcore.ops.mean_around_median import mean_around_median
from fedcore.ops.median import median
from fedcore.ops.sign_counts import sign_counts
from fedcore.ops.squared_distances import squared_distances
from fedcore.ops.squared_norms import squared_norms
from fedcore.ops.trimmed_mean import trimmed_mean
from fedcore.ops.weighted_sum import weighted_sum
from fedcore.ops.weighted_sums import weighted_sums

__all__ = [
    "ExactSum",
    "gram",
    "gram_epsilon",
    "mean_around_median",
    "median",
    "sign_counts",
    "squared_distances",
    "squared_norms",
    "trimmed_mean",
    "weighted_sum",
    "weighted_sums",
]
