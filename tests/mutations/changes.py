"""The changes that are tried: factors, axes, bounds, signs, masks, restored states, swallowed errors, tolerances."""

from tests.mutations.change import Change, changes_of

CHANGES: list[Change] = [
    # ------------------------------------------------------------------------------------------------------- functional
    *changes_of(
        "functional/norms.py",
        ("result.abs_()", "result"),
        ("part[1:] *= 2", "part[1:] *= 1"),
        ("_CANCELS = 0.05", "_CANCELS = 0.0"),
    ),
    *changes_of("functional/gram.py", ("if not seen:", "if False:")),
    *changes_of(
        "functional/block.py",
        ("_CANCELS = 0.1", "_CANCELS = 0.0"),
        ("torch.where(m + p == 0, 0.0, m / (m + p))", "torch.where(m + p == 0, 0.0, p / (m + p))"),
        ("rest -= self.b_O", "rest += self.b_O"),
    ),
    *changes_of("functional/normalization.py", ("+ self.eps).sqrt_()", ").sqrt_()"), tests="functional/test_block.py"),
    *changes_of("functional/aggregate.py", ("1 + layer.sum(-1, k", "layer.sum(-1, k")),
    *changes_of(
        "functional/aggregate.py",
        ("totals.masked_fill(totals == 0, 1)", "totals"),
        tests="functional/test_flow.py",
    ),
    *changes_of(
        "functional/maxflow.py",
        ("(found < self.steps[n])", "(found > self.steps[n])"),
        tests="functional/test_flow.py",
    ),
    *changes_of(
        "functional/alti.py",
        ("nearer.clamp_min_(0)", "nearer"),
        ("replace(norm, eps=0.0)", "norm"),
    ),
    *changes_of("functional/decompx.py", ("if with_b_V:", "if not with_b_V:")),
    *changes_of("functional/relevance.py", (".clamp_min_(0).mean(1)", ".mean(1)")),
    *changes_of("functional/row.py", ("_CANCELS = 0.03", "_CANCELS = 0.0")),
    *changes_of("functional/split.py", ("0, vectors / lengths, 0", "0, vectors, 0")),
    *changes_of("functional/value_zeroing.py", ("- (lengths == 0).to(dtype) ", "")),
    # ----------------------------------------------------------------------------------------------------- files, ranks
    *changes_of(
        "files.py",
        ("0o666 & ~umask", "0o600 & ~umask"),
        ("unfinished.unlink(missing_ok=True)", "pass"),
        ("    os.umask(umask)", "    pass"),
    ),
    *changes_of("ranks.py", ("searchsorted(in_order, scores, right=True)", "searchsorted(in_order, scores)")),
    # --------------------------------------------------------------------------------------------------- measures, maps
    *changes_of(
        "measures.py",
        ("record.weights.mean(dim=1, ", "record.weights.mean(dim=-1, "),
        ('in ("behind", "beside", "later")', 'in ("behind", "beside")'),
        ("gate.shape[-1] == 1:", "gate.shape[-1] == 2:"),
    ),
    *changes_of(
        "maps/choices.py",
        ('startswith(f"{choice}.")', 'startswith(f"{choice}")'),
        ("W_O=record.W_O[heads]", "W_O=record.W_O"),
        ("index=record.queries.index[rows]", "index=record.queries.index"),
    ),
    *changes_of("maps/reading.py", ("self.choices.layers is None or bool(met)", "True")),
    *changes_of(
        "maps/saving.py",
        (".cpu().clone(memory_format=torch.contiguous_format)", ".cpu()"),
        ('"queries")', ")"),
    ),
    *changes_of("maps/results.py", ('["residual"] * (size', '["residual"] * (1 + size')),
    # ---------------------------------------------------------------------------------------------------- visualization
    *changes_of("visualization/style.py", ("0.7152 * green", "0.1152 * green")),
    *changes_of(
        "visualization/one_example.py",
        ("scores[..., queries, :]", "scores"),
        ("h % self.maps", "0 * h % self.maps"),
    ),
    *changes_of("visualization/colour_bars.py", ("-largest if (values < 0)", "0.0 if (values < 0)")),
    *changes_of("visualization/grids.py", ('shared if scale == "shared"', "shared if scale")),
    *changes_of("visualization/strips.py", ("(1 + part) / 2", "(1 - part) / 2")),
    # ----------------------------------------------------------------------------------------------------------- models
    *changes_of("models/low_rank.py", ("weight + up @ down", "weight - up @ down")),
    *changes_of(
        "models/embedded.py",
        ("if digest != card", "if not digest != card"),
        ("devices=[]", "devices=[], enabled=False"),
        ("pieces.no_truncation()", "pass"),
    ),
    *changes_of(
        "models/shipped.py",
        (".hexdigest() != expected", ".hexdigest() == 0"),
        tests="models/test_embedded.py",
    ),
    *changes_of(
        "models/translation.py",
        ("set(loaded.missing_keys)", "set()"),
        tests="models/training/test_translation_writing.py",
    ),
    *changes_of("models/training/bleu.py", ("min(0.0, 1 - lengths", "(1 - lengths")),
    *changes_of("models/training/translation_batches.py", ("(len(part) + 1) > size", "len(part) > size")),
    *changes_of("models/training/translation_run.py", ("real = target != PAD", "real = target != -1")),
    *changes_of("models/translation_text.py", ("plain.lower()", "plain")),
    # -------------------------------------------------------------------------------- words, classes, what they receive
    *changes_of(
        "tokens.py",
        ("inside.lstrip()", "inside"),
        ("include_self=False", "include_self=True"),
        ("for token in reversed(pieces):", "for token in pieces:"),
        ("torch.where(queries, total, 1.0)", "torch.where(queries, total, 0.0)"),
        ("received.sum(-2) / queries.sum(-1)", "received.sum(-2) / queries.shape[-1]"),
        ("one_hot = one_hot & keys", "one_hot = one_hot | ~keys"),
    ),
    # ---------------------------------------------------------------------------------------------------------- forward
    *changes_of(
        "forward/causal.py",
        ("> first[:, None]", ">= first[:, None]"),
        ("[-1].clone()  # some", "[-1]  # some"),
        ("torch.random.fork_rng(sorted(devices))", "torch.enable_grad()"),
        tests="test_forward.py",
    ),
    *changes_of(
        "forward/embedding.py",
        ("                handle.remove()", "                pass"),
        ("if get_ident() != thread:", "if False:"),
        tests="test_forward.py",
    ),
    *changes_of(
        "forward/hugging_face.py",
        ("/ share.sum(1, keepdim=True)", "/ share.shape[1]"),
        ("main = main.clone()", "main = main"),
        ("eps ** 0.75 * size", "eps ** 0.05 * size"),
        tests="test_forward.py",
    ),
    # -------------------------------------------------------------------------------------------------------- alignment
    *changes_of(
        "alignment/scoring.py",
        ("hit_sure / max(sure, 1)", "hit_sure / max(found, 1)"),
        ("(0.025, 0.975)))", "(0.25, 0.75)))"),
        ("(t + 0.5) / targets", "t / targets"),
    ),
    *changes_of(
        "alignment/symmetrisation.py",
        ("s for s, _ in links) or all", "s for s, _ in links) and all"),
        tests="alignment/test_scoring.py",
    ),
    *changes_of(
        "alignment/links.py",
        ("(t, s) if self.swapped else (s, t)", "(s, t)"),
        ("sorted(gold.possible - gold.sure)", "sorted(gold.possible)"),
    ),
    *changes_of(
        "alignment/methods.py",
        ("if layer not in (None, len(maps))", "if False"),
        ("[..., : record.weights.shape[-1]]", ""),
        tests="alignment/test_aligner.py",
    ),
    # ------------------------------------------------------------------------------------------------------------ study
    *changes_of(
        "study/run/runner.py",
        (
            "            except _FATAL:\n                raise\n            except NoEvidenceError:",
            "            except NoEvidenceError:",
        ),
        tests="study/run/test_store.py",
    ),
    *changes_of(
        "study/run/runner.py",
        ('setdefault(scorer.special == "keep", {})', "setdefault(True, {})"),
        tests="study/test_study.py",
    ),
    *changes_of(
        "study/run/store.py",
        ('execute("ROLLBACK")', 'execute("COMMIT")'),
        ("return None if value != value else value", "return value or None"),
        ("application == _APPLICATION and version", "version == -1 and version"),
    ),
    *changes_of(
        "study/metrics/order.py",
        ("fraction * count - 1e-9", "fraction * count"),
        ("descending=True, stable=True", "descending=True"),
        tests="study/metrics/test_metrics.py",
    ),
    *changes_of(
        "study/metrics/perturbed.py",
        ("keep = keep | ~scored", "keep = keep & ~scored"),
        ("by_length.argsort()[place]", "by_length[place]"),
        tests="study/metrics/test_metrics.py",
    ),
    *changes_of(
        "study/metrics/soft.py",
        ("else 1 - shares(scored)", "else shares(scored)"),
        tests="study/metrics/test_metrics.py",
    ),
    *changes_of(
        "study/metrics/removal.py",
        ("[:, -length:]", "[:, :length]"),
        ("_never_empty(left, mask)", "left"),
    ),
    *changes_of("study/metrics/plausibility.py", ("precision[1:] if area", "precision[:-1] if area")),
    *changes_of(
        "study/metrics/curves.py",
        ("first if self.inserts else ~first", "first"),
        tests="study/metrics/test_metrics.py",
    ),
    *changes_of(
        "study/report/statistics.py",
        ("np.maximum.accumulate(", "("),
        ("m * ties", "ties"),
        ("std(ddof=1)", "std()"),
    ),
    *changes_of("study/agreement.py", ("** (depths - 1)", "** depths")),
    # ------------------------------------------------------------------------------------------------------------- attr
    *changes_of("attr/_reduction.py", ("if not torch.equal(rows.cpu()", "if False and not torch.equal(rows.cpu()")),
    *changes_of(
        "attr/_reduction.py",
        ("keys, True) and record.call.kind", "keys, True) or record.call.kind"),
        ("row.masked_fill(~_beside(real, row).to(row.device), 0)", "row"),
        tests="attr/test_what_is_computed.py",
    ),
    *changes_of(
        "attr/_aggregate.py",
        ("rows) / self._counts[route]", "rows)"),
        ("[*kept, one][self._n :]", "[*kept, one][-1:]"),
        tests="attr/test_what_is_computed.py",
    ),
    *changes_of(
        "attr/_position.py",
        ("scores.sum(1) / mask.sum(1)", "scores.sum(1) / mask.shape[1]"),
        tests="attr/test_what_is_computed.py",
    ),
    *changes_of(
        "attr/_placing.py",
        ("scores.shape[1] / like[0].numel()", "1 / like[0].numel()"),
        ("scores / trailing.numel()", "scores"),
        tests="attr/test_what_is_computed.py",
    ),
    *changes_of(
        "attr/_paths.py",
        ("part * kept for sequence", "part for sequence"),
        ("if one.layer != self._layer:", "if True:"),
        ("other[queries], own[queries])", "other[queries])"),
    ),
    *changes_of(
        "attr/_split.py",
        ("<= _TOLERANCES.get(bias.dtype, 1e-5) * size", "<= 1e3 * size"),
        ("torch.set_grad_enabled(self._grad_modes.pop())", "self._grad_modes.pop()"),
        ("/ real.sum(1, keepdim=True))[:", ")[:"),
    ),
    *changes_of(
        "attr/llm.py",
        ("ids.shape[1] - 1\n", "ids.shape[1]\n"),
        ("triu(self._first + 1)", "triu(self._first + 9)"),
        ("rows[:, :length].sum(1) - scored", "rows[:, :length].sum(1)"),
    ),
    *changes_of(
        "attr/decompx.py",
        ("found.output - found.bias - of_inputs", "found.output - of_inputs"),
        ("reached.int().argmax(1)", "reached.int().argmin(1)"),
    ),
]  # fmt: skip
