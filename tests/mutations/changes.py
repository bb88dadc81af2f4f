"""The changes that are tried: factors, axes, bounds, signs, masks, restored states, swallowed errors, tolerances."""

from tests.mutations.change import Change

CHANGES = [
    # ------------------------------------------------------------------------------------------------ functional
    Change("functional/norms.py", "result.abs_()", "result", "functional/test_norms.py"),
    Change("functional/norms.py", "part[1:] *= 2", "part[1:] *= 1", "functional/test_norms.py"),
    Change("functional/norms.py", "_CANCELS = 0.05", "_CANCELS = 0.0", "functional/test_norms.py"),
    Change("functional/gram.py", "if not seen:", "if False:", "functional/test_gram.py"),
    Change("functional/block.py", "_CANCELS = 0.1", "_CANCELS = 0.0", "functional/test_block.py"),
    Change(
        "functional/block.py",
        "torch.where(m + p == 0, 0.0, m / (m + p))",
        "torch.where(m + p == 0, 0.0, p / (m + p))",
        "functional/test_block.py",
    ),
    Change("functional/block.py", "rest -= self.b_O", "rest += self.b_O", "functional/test_block.py"),
    Change("functional/normalization.py", "+ self.eps).sqrt_()", ").sqrt_()", "functional/test_block.py"),
    Change("functional/aggregate.py", "1 + layer.sum(-1, k", "layer.sum(-1, k", "functional/test_aggregate.py"),
    Change("functional/aggregate.py", "totals.masked_fill(totals == 0, 1)", "totals", "functional/test_flow.py"),
    Change("functional/maxflow.py", "(found < self.steps[n])", "(found > self.steps[n])", "functional/test_flow.py"),
    Change("functional/alti.py", "nearer.clamp_min_(0)", "nearer", "functional/test_alti.py"),
    Change("functional/alti.py", "replace(norm, eps=0.0)", "norm", "functional/test_alti.py"),
    Change("functional/decompx.py", "if with_b_V:", "if not with_b_V:", "functional/test_decompx.py"),
    Change("functional/relevance.py", ".clamp_min_(0).mean(1)", ".mean(1)", "functional/test_relevance.py"),
    Change("functional/row.py", "_CANCELS = 0.03", "_CANCELS = 0.0", "functional/test_row.py"),
    Change("functional/split.py", "0, vectors / lengths, 0", "0, vectors, 0", "functional/test_split.py"),
    Change(
        "functional/value_zeroing.py",
        "- (lengths == 0).to(dtype) ",
        "",
        "functional/test_value_zeroing.py",
    ),
    # ---------------------------------------------------------------------------------------------- files, ranks
    Change("files.py", "0o666 & ~umask", "0o600 & ~umask", "test_files.py"),
    Change("files.py", "unfinished.unlink(missing_ok=True)", "pass", "test_files.py"),
    Change("files.py", "    os.umask(umask)", "    pass", "test_files.py"),
    Change("ranks.py", "searchsorted(in_order, scores, right=True)", "searchsorted(in_order, scores)", "test_ranks.py"),
]
