"""The public ops: each validates once, selects a backend and calls it."""

from fedcore.ops.clip_noise_accumulate import ClippedSum, clip_noise_accumulate
from fedcore.ops.clip_round import Clipped, clip_grid, clip_round
from fedcore.ops.discrete_gaussian import discrete_gaussian, discrete_gaussian_bits
from fedcore.ops.exact_sum import ExactSum
from fedcore.ops.gram import gram, gram_epsilon
from fedcore.ops.hadamard import hadamard
from fedcore.ops.keystream import keystream
from fedcore.ops.keystream_add import keystream_add
from fedcore.ops.lora_delta_order import lora_delta_median, lora_delta_trimmed_mean
from fedcore.ops.lora_delta_sum import lora_delta_sum
from fedcore.ops.lora_gram import lora_blocks, lora_gram
from fedcore.ops.lora_truncate import Truncated, lora_truncate, lora_truncate_modules
from fedcore.ops.mask_add import mask_add, unmask_sum
from fedcore.ops.mean_around_median import mean_around_median
from fedcore.ops.median import median
from fedcore.ops.pack_bits import pack_bits, unpack_add
from fedcore.ops.shamir import shamir_combine, shamir_split
from fedcore.ops.sign_counts import sign_counts
from fedcore.ops.squared_distances import squared_distances
from fedcore.ops.squared_norms import squared_norms
from fedcore.ops.trimmed_mean import trimmed_mean
from fedcore.ops.weighted_sum import weighted_sum
from fedcore.ops.weighted_sums import weighted_sums

__all__ = [
    "Clipped",
    "ClippedSum",
    "ExactSum",
    "Truncated",
    "clip_grid",
    "clip_noise_accumulate",
    "clip_round",
    "discrete_gaussian",
    "discrete_gaussian_bits",
    "gram",
    "gram_epsilon",
    "hadamard",
    "keystream",
    "keystream_add",
    "lora_blocks",
    "lora_delta_median",
    "lora_delta_sum",
    "lora_delta_trimmed_mean",
    "lora_gram",
    "lora_truncate",
    "lora_truncate_modules",
    "mask_add",
    "mean_around_median",
    "median",
    "pack_bits",
    "shamir_combine",
    "shamir_split",
    "sign_counts",
    "squared_distances",
    "squared_norms",
    "trimmed_mean",
    "unmask_sum",
    "unpack_add",
    "weighted_sum",
    "weighted_sums",
]
