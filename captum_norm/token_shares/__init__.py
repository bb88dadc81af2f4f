"""Which tokens does attention go to: by weight, by the norm of each head's contribution, by the norm of their sum?

Finding 1 of Kobayashi et al. (2020), https://arxiv.org/abs/2004.10102: special tokens receive a large share of the
attention weight, but f(x) is short for them, so that little arrives.  For a measure m (α, ‖αf(x)‖ per head, or
‖Σ_h αf(x)‖) and a class c of tokens,

    share of c for query i = Σ_{j in c} m_ij / Σ_j m_ij,

averaged over the queries of a sequence, then over heads and sequences, then over layers.  Beside it stands the paper's
own procedure, Σ_{j in c} m_ij, not divided by the row.  Sums are added up in float64 while the model runs: nothing is
kept of a sequence, and the result does not depend on how sequences are batched.
"""

from captum_norm.token_shares.counting import MEASURES, NO_TOKEN, ShareCounter
from captum_norm.token_shares.paragraphs import paragraphs_of, read_paragraphs
from captum_norm.token_shares.shares import TokenShares

__all__ = ["MEASURES", "NO_TOKEN", "ShareCounter", "TokenShares", "paragraphs_of", "read_paragraphs"]
