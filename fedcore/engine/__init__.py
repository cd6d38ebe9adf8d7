"""A rule over a cohort."""

from fedcore.engine.combination import Space
from fedcore.engine.run import Aggregate, aggregate
from fedcore.rules.files import Progress

__all__ = ["Aggregate", "Progress", "Space", "aggregate"]
