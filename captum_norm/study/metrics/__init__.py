"""How good are a method's scores?  One class for each metric, and a table of them with their usual parameters.

Faithfulness, by what the model does without some tokens: ``erasure``, ``soft``, ``curves``, ``leave_one_out``, and
Captum's own two in ``captums``.  Plausibility, against evidence: ``plausibility``.  Sanity: ``randomised``.
"""

from captum_norm.study.metrics.captums import Infidelity, Sensitivity
from captum_norm.study.metrics.curves import DeletionArea, InsertionArea
from captum_norm.study.metrics.erasure import (
    AOPCComprehensiveness,
    AOPCSufficiency,
    Comprehensiveness,
    LogOdds,
    Sufficiency,
)
from captum_norm.study.metrics.leave_one_out import LeaveOneOutCorrelation
from captum_norm.study.metrics.metric import Attribute, Metric
from captum_norm.study.metrics.plausibility import AUPRC, IOU, TokenF1, average_precision, random_average_precision
from captum_norm.study.metrics.randomised import RandomisedWeights
from captum_norm.study.metrics.soft import SoftComprehensiveness, SoftSufficiency

_ALL: tuple[Metric, ...] = (
    Comprehensiveness(),
    Sufficiency(),
    AOPCComprehensiveness(),
    AOPCSufficiency(),
    LogOdds(),
    SoftComprehensiveness(),
    SoftSufficiency(),
    InsertionArea(),
    DeletionArea(),
    LeaveOneOutCorrelation(),
    Infidelity(),
    Sensitivity(),
    AUPRC(),
    TokenF1(),
    IOU(),
    RandomisedWeights(),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""Every metric under its name, with its usual parameters; others by ``dataclasses.replace(metric, removal="mask")``."""

__all__ = [
    "AUPRC",
    "IOU",
    "METRICS",
    "AOPCComprehensiveness",
    "AOPCSufficiency",
    "Attribute",
    "Comprehensiveness",
    "DeletionArea",
    "Infidelity",
    "InsertionArea",
    "LeaveOneOutCorrelation",
    "LogOdds",
    "Metric",
    "RandomisedWeights",
    "Sensitivity",
    "SoftComprehensiveness",
    "SoftSufficiency",
    "Sufficiency",
    "TokenF1",
    "average_precision",
    "random_average_precision",
]
