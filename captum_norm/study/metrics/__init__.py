"""How good are a method's scores?  One class for each metric, and a table of them with their usual parameters."""

from captum_norm.study.metrics.metric import Attribute, Metric

METRICS: dict[str, Metric] = {}
"""Every metric under its name, with its usual parameters."""

__all__ = ["METRICS", "Attribute", "Metric"]
