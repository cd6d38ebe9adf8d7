"""A rule over a cohort."""

from fedcore.engine.run import Aggregate, aggregate

__all__ = ["Aggregate", "aggregate"]
