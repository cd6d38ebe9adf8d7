"""The public ops: each validates once, selects a backend and calls it."""

from fedcore.ops.gram import GRAM_EPSILON, gram
from fedcore.ops.squared_distances import squared_distances
from fedcore.ops.squared_norms import squared_norms
from fedcore.ops.weighted_sum import weighted_sum

__all__ = ["GRAM_EPSILON", "gram", "squared_distances", "squared_norms", "weighted_sum"]
