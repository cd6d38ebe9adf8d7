"""Aggregation on arrival: `Accumulator`, for every rule."""

from fedcore.accumulator.accumulator import Accumulator

__all__ = ["Accumulator"]
