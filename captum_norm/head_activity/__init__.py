"""Which heads are sinks, and which are idle?  Counted by sequences, and over a corpus in parts that are kept."""

from captum_norm.head_activity.corpus import HeadStore
from captum_norm.head_activity.counting import QUANTITIES, HeadActivity, HeadCounter, HeadCounts

__all__ = ["QUANTITIES", "HeadActivity", "HeadCounter", "HeadCounts", "HeadStore"]
