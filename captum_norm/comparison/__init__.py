"""Several methods on one text: what the model says of it, what each method says of that, and how far they agree.

``tasks`` reads from a model's class what its output says and which of its rows is explained; ``compared`` asks the
methods.  ``captum-norm compare`` prints it.
"""

from captum_norm.comparison.compared import Comparison, compare
from captum_norm.comparison.tasks import TASKS, Question, question

__all__ = ["TASKS", "Comparison", "Question", "compare", "question"]
