"""Differential privacy: what a plan of noisy sums costs, a budget that survives crashes, clipping and noise."""

from fedcore.privacy.accounting import epsilon, noise_multiplier
from fedcore.privacy.budget import Budget, Noise
from fedcore.privacy.discrete_sums import distributed_epsilon

__all__ = ["Budget", "Noise", "distributed_epsilon", "epsilon", "noise_multiplier"]
