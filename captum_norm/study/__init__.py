"""Which attribution method should be believed on this model?  Methods, metrics and data in one study.

``Study(model, tokenizer, methods, metrics).run(data, store="study.db")`` gives `Results`; `metrics`, `removal`,
`agreement`, `statistics` and `planted` can be used by themselves.
"""

from captum_norm.study.data import Example, Fields, read_examples
from captum_norm.study.metrics import METRICS, Metric
from captum_norm.study.results import Failure, Results
from captum_norm.study.store import StoreMismatchError
from captum_norm.study.study import DEFAULT_METHODS, Study
from captum_norm.study.variants import StoredScores, Variant

__all__ = [
    "DEFAULT_METHODS",
    "METRICS",
    "Example",
    "Failure",
    "Fields",
    "Metric",
    "Results",
    "StoreMismatchError",
    "StoredScores",
    "Study",
    "Variant",
    "read_examples",
]
