"""Aggregation rules over rows, and their composition."""

from fedcore.rules.bucketing import Bucketing
from fedcore.rules.bulyan import Bulyan
from fedcore.rules.centered_clipping import CenteredClipping
from fedcore.rules.clipping import ARC, NormClipping
from fedcore.rules.composition import Composed, Mixing, PreAggregation
from fedcore.rules.fltrust import FLTrust
from fedcore.rules.geometric_median import GeometricMedian
from fedcore.rules.krum import Krum, MultiKrum
from fedcore.rules.mean import Mean
from fedcore.rules.median import Median
from fedcore.rules.minimum_diameter import MinimumDiameterAveraging
from fedcore.rules.monna import MoNNA
from fedcore.rules.nearest_neighbor_mixing import NearestNeighborMixing
from fedcore.rules.order_statistic import OrderStatistic
from fedcore.rules.rule import Coefficients, Rule
from fedcore.rules.sign_majority import SignMajority
from fedcore.rules.spectral_filter import SpectralFilter
from fedcore.rules.trimmed_mean import MeanAroundMedian, TrimmedMean

__all__ = [
    "ARC",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "Coefficients",
    "Composed",
    "FLTrust",
    "GeometricMedian",
    "Krum",
    "Mean",
    "MeanAroundMedian",
    "Median",
    "MinimumDiameterAveraging",
    "Mixing",
    "MoNNA",
    "MultiKrum",
    "NearestNeighborMixing",
    "NormClipping",
    "OrderStatistic",
    "PreAggregation",
    "Rule",
    "SignMajority",
    "SpectralFilter",
    "TrimmedMean",
]
