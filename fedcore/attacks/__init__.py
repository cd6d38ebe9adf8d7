"""Attacks on a federation, so that its defences can be measured."""

from fedcore.attacks.alie import ALIE
from fedcore.attacks.attack import Attack
from fedcore.attacks.ipm import IPM
from fedcore.attacks.mimic import Mimic
from fedcore.attacks.min_max import MinMax, MinSum
from fedcore.attacks.noise import Gaussian, Inf
from fedcore.attacks.sign_flip import SignFlip, sign_flip

#: name in a configuration -> class
ATTACKS: dict[str, type[Attack]] = {
    "sign_flip": SignFlip,
    "alie": ALIE,
    "ipm": IPM,
    "mimic": Mimic,
    "gaussian": Gaussian,
    "inf": Inf,
    "min_max": MinMax,
    "min_sum": MinSum,
}

__all__ = [
    "ALIE",
    "ATTACKS",
    "IPM",
    "Attack",
    "Gaussian",
    "Inf",
    "Mimic",
    "MinMax",
    "MinSum",
    "SignFlip",
    "sign_flip",
]
