"""Differential privacy: what a plan of noisy sums costs, a budget that survives crashes, clipping and noise."""

from fedcore.privacy.accounting import epsilon, noise_multiplier
from fedcore.privacy.adaptive import AdaptiveClip
from fedcore.privacy.budget import Budget, Noise
from fedcore.privacy.central import Central
from fedcore.privacy.correlated import Correlated
from fedcore.privacy.discrete_sums import distributed_epsilon
from fedcore.privacy.distributed import Distributed
from fedcore.privacy.participation import Rounds
from fedcore.privacy.release import Release
from fedcore.privacy.statistic import orthonormal

__all__ = [
    "AdaptiveClip",
    "Budget",
    "Central",
    "Correlated",
    "Distributed",
    "Noise",
    "Release",
    "Rounds",
    "distributed_epsilon",
    "epsilon",
    "noise_multiplier",
    "orthonormal",
]
