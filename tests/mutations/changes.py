"""The changes that are tried: factors, axes, bounds, signs, masks, restored states, swallowed errors, tolerances."""

from tests.mutations.change import Change, changes_of

CHANGES: list[Change] = [
    # ------------------------------------------------------------------------------------------------------- functional
    *changes_of(
        "functional/norms.py", "functional/test_norms.py",
        ("result.abs_()", "result"),
        ("part[1:] *= 2", "part[1:] *= 1"),
        ("_CANCELS = 0.05", "_CANCELS = 0.0"),
    ),
    *changes_of("functional/gram.py", "functional/test_gram.py", ("if not seen:", "if False:")),
    *changes_of(
        "functional/block.py", "functional/test_block.py",
        ("_CANCELS = 0.1", "_CANCELS = 0.0"),
        ("torch.where(m + p == 0, 0.0, m / (m + p))", "torch.where(m + p == 0, 0.0, p / (m + p))"),
        ("rest -= self.b_O", "rest += self.b_O"),
    ),
    *changes_of("functional/normalization.py", "functional/test_block.py", ("+ self.eps).sqrt_()", ").sqrt_()")),
    *changes_of("functional/aggregate.py", "functional/test_aggregate.py", ("1 + layer.sum(-1, k", "layer.sum(-1, k")),
    *changes_of("functional/aggregate.py", "functional/test_flow.py", ("totals.masked_fill(totals == 0, 1)", "totals")),
    *changes_of(
        "functional/maxflow.py", "functional/test_flow.py",
        ("(found < self.steps[n])", "(found > self.steps[n])"),
    ),
    *changes_of(
        "functional/alti.py", "functional/test_alti.py",
        ("nearer.clamp_min_(0)", "nearer"),
        ("replace(norm, eps=0.0)", "norm"),
    ),
    *changes_of("functional/decompx.py", "functional/test_decompx.py", ("if with_b_V:", "if not with_b_V:")),
    *changes_of("functional/relevance.py", "functional/test_relevance.py", (".clamp_min_(0).mean(1)", ".mean(1)")),
    *changes_of("functional/row.py", "functional/test_row.py", ("_CANCELS = 0.03", "_CANCELS = 0.0")),
    *changes_of("functional/split.py", "functional/test_split.py", ("0, vectors / lengths, 0", "0, vectors, 0")),
    *changes_of("functional/value_zeroing.py", "functional/test_value_zeroing.py", ("- (lengths == 0).to(dtype) ", "")),
    # ----------------------------------------------------------------------------------------------------- files, ranks
    *changes_of(
        "files.py", "test_files.py",
        ("0o666 & ~umask", "0o600 & ~umask"),
        ("unfinished.unlink(missing_ok=True)", "pass"),
        ("    os.umask(umask)", "    pass"),
    ),
    *changes_of(
        "ranks.py", "test_ranks.py",
        ("searchsorted(in_order, scores, right=True)", "searchsorted(in_order, scores)"),
    ),
    # --------------------------------------------------------------------------------------------------- measures, maps
    *changes_of(
        "measures.py", "test_maps.py",
        ("record.weights.mean(dim=1, ", "record.weights.mean(dim=-1, "),
        ('in ("behind", "beside", "later")', 'in ("behind", "beside")'),
        ("gate.shape[-1] == 1:", "gate.shape[-1] == 2:"),
    ),
    *changes_of(
        "maps/choices.py", "test_maps.py",
        ('startswith(f"{choice}.")', 'startswith(f"{choice}")'),
        ("W_O=record.W_O[heads]", "W_O=record.W_O"),
        ("index=record.queries.index[rows]", "index=record.queries.index"),
    ),
    *changes_of("maps/reading.py", "test_maps.py", ("self.choices.layers is None or bool(met)", "True")),
    *changes_of(
        "maps/saving.py", "test_maps.py",
        (".cpu().clone(memory_format=torch.contiguous_format)", ".cpu()"),
        ('"queries")', ")"),
    ),
    *changes_of("maps/results.py", "test_maps.py", ('["residual"] * (size', '["residual"] * (1 + size')),
    # ---------------------------------------------------------------------------------------------------- visualization
    *changes_of("visualization/style.py", "test_visualization.py", ("0.7152 * green", "0.1152 * green")),
    *changes_of(
        "visualization/one_example.py", "test_visualization.py",
        ("scores[..., queries, :]", "scores"),
        ("h % self.maps", "0 * h % self.maps"),
    ),
    *changes_of(
        "visualization/colour_bars.py", "test_visualization.py",
        ("-largest if (values < 0)", "0.0 if (values < 0)"),
    ),
    *changes_of("visualization/grids.py", "test_visualization.py", ('shared if scale == "shared"', "shared if scale")),
    *changes_of("visualization/strips.py", "test_visualization.py", ("(1 + part) / 2", "(1 - part) / 2")),
    # ----------------------------------------------------------------------------------------------------------- models
    *changes_of("models/low_rank.py", "models/test_low_rank.py", ("weight + up @ down", "weight - up @ down")),
    *changes_of(
        "models/embedded.py", "models/test_embedded.py",
        ("if digest != card", "if not digest != card"),
        ("devices=[]", "devices=[], enabled=False"),
        ("pieces.no_truncation()", "pass"),
    ),
    *changes_of("models/shipped.py", "models/test_embedded.py", (".hexdigest() != expected", ".hexdigest() == 0")),
    *changes_of(
        "models/translation.py", "models/training/test_translation_writing.py",
        ("set(loaded.missing_keys)", "set()"),
    ),
    *changes_of("models/training/bleu.py", "models/training/test_bleu.py", ("min(0.0, 1 - lengths", "(1 - lengths")),
    *changes_of(
        "models/training/translation_batches.py", "models/training/test_translation_batches.py",
        ("(len(part) + 1) > size", "len(part) > size"),
    ),
    *changes_of(
        "models/training/translation_run.py", "models/training/test_translation_run.py",
        ("real = target != PAD", "real = target != -1"),
    ),
    *changes_of("models/translation_text.py", "models/test_translation_text.py", ("plain.lower()", "plain")),
    # -------------------------------------------------------------------------------- words, classes, what they receive
    *changes_of(
        "tokens.py", "test_tokens.py",
        ("inside.lstrip()", "inside"),
        ("include_self=False", "include_self=True"),
        ("for token in reversed(pieces):", "for token in pieces:"),
        ("torch.where(queries, total, 1.0)", "torch.where(queries, total, 0.0)"),
        ("received.sum(-2) / queries.sum(-1)", "received.sum(-2) / queries.shape[-1]"),
        ("one_hot = one_hot & keys", "one_hot = one_hot | ~keys"),
    ),
    # ---------------------------------------------------------------------------------------------------------- forward
    *changes_of(
        "forward/causal.py", "test_forward.py",
        ("> first[:, None]", ">= first[:, None]"),
        ("[-1].clone()  # some", "[-1]  # some"),
        ("torch.random.fork_rng(sorted(devices))", "torch.enable_grad()"),
    ),
    *changes_of(
        "forward/embedding.py", "test_forward.py",
        ("                handle.remove()", "                pass"),
        ("if get_ident() != thread:", "if False:"),
    ),
    *changes_of(
        "forward/hugging_face.py", "test_forward.py",
        ("/ share.sum(1, keepdim=True)", "/ share.shape[1]"),
        ("main = main.clone()", "main = main"),
        ("eps ** 0.75 * size", "eps ** 0.05 * size"),
    ),
    # -------------------------------------------------------------------------------------------------------- alignment
    *changes_of(
        "alignment/scoring.py", "alignment/test_scoring.py",
        ("hit_sure / max(sure, 1)", "hit_sure / max(found, 1)"),
        ("(0.025, 0.975)))", "(0.25, 0.75)))"),
        ("(t + 0.5) / targets", "t / targets"),
    ),
    *changes_of(
        "alignment/symmetrisation.py", "alignment/test_scoring.py",
        ("s for s, _ in links) or all", "s for s, _ in links) and all"),
    ),
    *changes_of(
        "alignment/links.py", "alignment/test_links.py",
        ("(t, s) if self.swapped else (s, t)", "(s, t)"),
        ("sorted(gold.possible - gold.sure)", "sorted(gold.possible)"),
    ),
    *changes_of(
        "alignment/methods.py", "alignment/test_aligner.py",
        ("if layer not in (None, len(maps))", "if False"),
        ("[..., : record.weights.shape[-1]]", ""),
    ),
    # ------------------------------------------------------------------------------------------------------------ study
    *changes_of(
        "study/run/runner.py", "study/run/test_store.py",
        (
            "            except _FATAL:\n                raise\n            except NoEvidenceError:",
            "            except NoEvidenceError:",
        ),
    ),
    *changes_of(
        "study/run/runner.py", "study/test_study.py",
        ('setdefault(scorer.special == "keep", {})', "setdefault(True, {})"),
    ),
    *changes_of(
        "study/run/store.py", "study/run/test_store.py",
        ('execute("ROLLBACK")', 'execute("COMMIT")'),
        ("return None if value != value else value", "return value or None"),
        ("application == _APPLICATION and version", "version == -1 and version"),
    ),
    *changes_of(
        "study/metrics/order.py", "study/metrics/test_metrics.py",
        ("fraction * count - 1e-9", "fraction * count"),
        ("descending=True, stable=True", "descending=True"),
    ),
    *changes_of(
        "study/metrics/perturbed.py", "study/metrics/test_metrics.py",
        ("keep = keep | ~scored", "keep = keep & ~scored"),
        ("by_length.argsort()[place]", "by_length[place]"),
    ),
    *changes_of(
        "study/metrics/soft.py", "study/metrics/test_metrics.py",
        ("else 1 - shares(scored)", "else shares(scored)"),
    ),
    *changes_of(
        "study/metrics/removal.py", "study/metrics/test_removal.py",
        ("[:, -length:]", "[:, :length]"),
        ("_never_empty(left, mask)", "left"),
    ),
    *changes_of(
        "study/metrics/plausibility.py", "study/metrics/test_plausibility.py",
        ("precision[1:] if area", "precision[:-1] if area"),
    ),
    *changes_of(
        "study/metrics/curves.py", "study/metrics/test_metrics.py",
        ("first if self.inserts else ~first", "first"),
    ),
    *changes_of(
        "study/report/statistics.py", "study/report/test_statistics.py",
        ("np.maximum.accumulate(", "("),
        ("m * ties", "ties"),
        ("std(ddof=1)", "std()"),
    ),
    *changes_of("study/agreement.py", "study/test_agreement.py", ("** (depths - 1)", "** depths")),
    # ------------------------------------------------------------------------------------------------------------- attr
    *changes_of(
        "attr/_reduction.py", "attr/test_reduction.py",
        ("if not torch.equal(rows.cpu()", "if False and not torch.equal(rows.cpu()"),
    ),
    *changes_of(
        "attr/_reduction.py", "attr/test_what_is_computed.py",
        ("keys, True) and record.call.kind", "keys, True) or record.call.kind"),
        ("row.masked_fill(~_beside(real, row).to(row.device), 0)", "row"),
    ),
    *changes_of(
        "attr/_aggregate.py", "attr/test_what_is_computed.py",
        ("rows) / self._counts[route]", "rows)"),
        ("[*kept, one][self._n :]", "[*kept, one][-1:]"),
    ),
    *changes_of(
        "attr/_position.py", "attr/test_what_is_computed.py",
        ("scores.sum(1) / mask.sum(1)", "scores.sum(1) / mask.shape[1]"),
    ),
    *changes_of(
        "attr/_placing.py", "attr/test_what_is_computed.py",
        ("scores.shape[1] / like[0].numel()", "1 / like[0].numel()"),
        ("scores / trailing.numel()", "scores"),
    ),
    *changes_of(
        "attr/_paths.py", "attr/test_paths.py",
        ("part * kept for sequence", "part for sequence"),
        ("if one.layer != self._layer:", "if True:"),
        ("other[queries], own[queries])", "other[queries])"),
    ),
    *changes_of(
        "attr/_split.py", "attr/test_split.py",
        ("<= _TOLERANCES.get(bias.dtype, 1e-5) * size", "<= 1e3 * size"),
        ("torch.set_grad_enabled(self._grad_modes.pop())", "self._grad_modes.pop()"),
        ("/ real.sum(1, keepdim=True))[:", ")[:"),
    ),
    *changes_of(
        "attr/llm.py", "attr/test_llm.py",
        ("ids.shape[1] - 1\n", "ids.shape[1]\n"),
        ("triu(self._first + 1)", "triu(self._first + 9)"),
        ("rows[:, :length].sum(1) - scored", "rows[:, :length].sum(1)"),
    ),
    *changes_of(
        "attr/decompx.py", "attr/test_decompx.py",
        ("found.output - found.bias - of_inputs", "found.output - of_inputs"),
        ("reached.int().argmax(1)", "reached.int().argmin(1)"),
    ),
]  # fmt: skip
