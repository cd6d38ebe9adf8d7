"""Aggregation rules over rows, and their composition."""

from fedcore.rules.krum import Krum, MultiKrum
from fedcore.rules.mean import Mean
from fedcore.rules.norm_clipping import NormClipping
from fedcore.rules.rule import Coefficients, Composed, Mixing, PreAggregation, Rule

__all__ = ["Coefficients", "Composed", "Krum", "Mean", "Mixing", "MultiKrum", "NormClipping", "PreAggregation", "Rule"]
