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
        "functional/dropping.py",
        ("> 0.5\n", "> 2.0\n"),
        ("torch.where(rest > rounding, rest, 0.0)", "torch.zeros_like(rest)"),
    ),
    *changes_of(
        "functional/feed_forward.py",
        ("_NEAR = 0.03", "_NEAR = 0.0"),
        ("torch.where(b == 0, 0.5, 0.0)", "torch.where(b == 0, 0.0, 0.0)"),
        ("(node * U + b_u)", "node * U"),
    ),
    *changes_of(
        "attr/_logit.py",
        ("towards / block.inner.deviation[..., None]", "towards"),
        ("torch.cat([part, below], dim=1)", "torch.cat([part, tracked], dim=1)"),
        tests="attr/test_alti_logit.py",
    ),
    *changes_of("attr/_sources.py", ("owner[start:stop] = [number]", "owner[:0] = [number]")),
    *changes_of(
        "head_activity/counting.py",
        ("given / given.mean()", "given / given.max()"),
        ("s / (n - 1)", "s / n"),
        ("int(record.call.kind == \"causal\" and query == key)", "0"),
        tests="cli/test_heads.py",
    ),
    *changes_of("attr/_contrast.py", ("* has_foil", ""), tests="attr/test_alti_logit.py"),
    *changes_of("linear/readout.py", ("gradient * state)", "gradient)"), tests="attr/test_alti_logit.py"),
    *changes_of(
        "attr/span_trace.py",
        ("divided / norm.deviation", "divided"),
        ("* before_the_end(thought)", "* 1"),
        ("(u != 0).any(0)", "(u != 0).all(0)"),
    ),
    *changes_of("functional/span.py", ("torch.where(state < 0, -1, 1)", "state.sign()")),
    *changes_of(
        "functional/block.py",
        ("_CANCELS = 0.1", "_CANCELS = 0.0"),
        ("rest -= self.b_O", "rest += self.b_O"),
    ),
    *changes_of(
        "functional/block_quantities.py",
        ("torch.where(m + p == 0, 0.0, m / (m + p))", "torch.where(m + p == 0, 0.0, p / (m + p))"),
        tests="functional/test_block.py",
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
        ("& ~far[n][:, None]", "& far[n][:, None]"),
        ("(left[which] + back[which])", "left[which]"),
        tests="functional/test_flow.py",
    ),
    *changes_of(
        "intervention/stretches.py",
        ("before is after or ", ""),
        ("not self.stretch.modules.isdisjoint(modules)", "True"),
        tests="intervention/test_stretches.py",
    ),
    *changes_of(
        "functional/even_flow.py",
        ("(torch.stack(largest) > 1).any(0)", "(torch.stack(largest) > 1e9).any(0)"),
        ("- too_much)", "+ too_much)"),
        tests="functional/test_flow.py",
    ),
    *changes_of(
        "functional/alti.py",
        ("torch.where(found > _ROUNDING * length[..., None], found, 0)", "found"),
        ("replace(norm, eps=0.0)", "norm"),
    ),
    *changes_of(
        "functional/nearer.py",
        ("_TOLERATED = 5e-7", "_TOLERATED = 1e9"),
        ("alpha=2)", "alpha=1)"),
        ("int(seen[-1]) + 1", "int(seen[-1])"),
        tests="functional/test_alti.py",
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
        ("Path(os.path.realpath(path))", "Path(path)"),
        ("not stat.S_ISREG(mode) and not", "False and not"),
        ("os.O_WRONLY | os.O_APPEND", "os.O_WRONLY"),
    ),
    *changes_of(
        "optional_packages.py",
        ("!= package:", "== package:"),
        ("            raise\n", "            pass\n"),
        ('package = module.partition(".")[0]', "package = module"),
    ),
    *changes_of(
        "ranks.py",
        ("searchsorted(in_order, scores, right=True)", "searchsorted(in_order, scores)"),
        ("(smaller + not_larger + 1)", "(smaller + not_larger)"),
        ("(spread[0] * spread[1]).sqrt()", "(spread[0] * spread[0]).sqrt()"),
    ),
    *changes_of(
        "suggestions.py",
        ("name.lower(), by_lower", "name, by_lower"),
        ("by_lower[near[0]]", "near[0]"),
        ("n=1)", "n=1, cutoff=0)"),
    ),
    # --------------------------------------------------------------------------------------------------- measures, maps
    *changes_of(
        "measures.py",
        ("record.weights.mean(dim=1, ", "record.weights.mean(dim=-1, "),
        ('in ("behind", "beside", "later")', 'in ("behind", "beside")'),
    ),
    *changes_of("measures.py", ("gate.shape[-1] == 1:", "gate.shape[-1] == 2:"), tests="maps"),
    *changes_of(
        "maps/selection.py",
        ('startswith(f"{choice}.")', 'startswith(f"{choice}")'),
        ("W_O=record.W_O[heads]", "W_O=record.W_O"),
    ),
    *changes_of("maps/reading.py", ("self.selection.layers is None or bool(met)", "True"), tests="maps"),
    *changes_of(
        "maps/saving.py",
        (".cpu().clone(memory_format=torch.contiguous_format)", ".cpu()"),
        ('"queries")', ")"),
    ),
    *changes_of(
        "maps/tidy.py",
        ("mask[example]", "mask[0]"),
        ("place if chosen is None else chosen[place]", "place"),
    ),
    *changes_of(
        "attr/_maps.py",
        ("scores = self.at(rows)\n  ", "scores = self.at(slice(start, start + len(asked)))\n  "),
        ("shares[:, rows].to(scores)", "shares[:, : scores.shape[1]].to(scores)"),
        tests="attr/test_from_the_top.py",
    ),
    *changes_of(
        "attr/generation.py",
        ("if parents is None:", "if False:"),
        ("before[passes.parents(ids.device)]", "before"),
        ("torch.arange(length - end, length)", "torch.arange(end)"),
        tests="attr/test_generation.py",
    ),
    *changes_of(
        "functional/growing.py",
        ("self.start + gone", "self.start"),
        ("_SOME if grown.keys else 1", "1"),
        tests="attr/test_generation.py",
    ),
    *changes_of("capture/blocks/forms.py", ("== 1 and not is_row", "== 1"), tests="attr/test_generation.py"),
    *changes_of("capture/modules.py", ("    break", "    continue")),
    *changes_of("maps/results.py", ('["residual"] * (size', '["residual"] * (1 + size'), tests="maps visualization"),
    # ----------------------------------------------------------------------------------------------------------- viewer
    *changes_of(
        "viewer/packing.py",
        ("np.sqrt(np.abs(parts))", "np.abs(parts)"),
        ("codes >> 8", "codes >> 7"),
        ("levels // 2\n", "levels // 4\n"),
    ),
    *changes_of(
        "viewer/content.py",
        ("torch.cat([columns, beyond])", "torch.cat([beyond, columns])"),
        ('tensor.index_select(axes.index("query"), rows)', "tensor"),
        ("if wrong <= _ALIKE * largest else None", "if wrong >= 0 else None"),
        ("head % call.heads for head in held", "head for head in held"),
    ),
    *changes_of(
        "viewer/labels.py",
        ("byte not in plain", "byte in plain"),
        ('return tokens[i].startswith("##")', 'return tokens[0].startswith("##")'),
    ),
    *changes_of(
        "viewer/page.py",
        ('for character in "<>&', 'for character in "'),
        ("html.escape(told", "str(told"),
    ),
    *changes_of("viewer/pictures.py", ("picture - picture.min()", "picture")),
    # ---------------------------------------------------------------------------------------------------- visualization
    *changes_of(
        "visualization/style.py",
        ("0.7152 * green", "0.1152 * green"),
        ("> 0.27 else", "> 0.2 else"),
    ),
    *changes_of(
        "visualization/one_example.py",
        ("scores[..., queries, :]", "scores"),
        ("h % self.maps", "0 * h % self.maps"),
    ),
    *changes_of(
        "visualization/style.py", ("-largest if (values < 0)", "0.0 if (values < 0)"), tests="visualization"
    ),
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
    *changes_of("models/translation.py", ("set(loaded.missing_keys)", "set()")),
    *changes_of("models/training/bleu.py", ("min(0.0, 1 - lengths", "(1 - lengths")),
    *changes_of("models/training/translation_batches.py", ("(len(part) + 1) > size", "len(part) > size")),
    *changes_of("models/training/translation_run.py", ("real = target != PAD", "real = target != -1")),
    *changes_of("models/translation_text.py", ("plain.lower()", "plain")),
    # -------------------------------------------------------------------------------- words, classes, what they receive
    *changes_of(
        "words.py",
        ("inside.lstrip()", "inside"),
        ("include_self=False", "include_self=True"),
        ("for token in reversed(pieces):", "for token in pieces:"),
    ),
    *changes_of(
        "token_shares.py",
        ("sums[name].total / self.sequences", "sums[name].mean()"),
        ("keys[example] & plain", "keys[example]"),
        ("max(self._worst, record.certificate.error)", "record.certificate.error"),
    ),
    *changes_of(
        "token_classes.py",
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
        tests="forward",
    ),
    *changes_of(
        "forward/embedding.py",
        ("                handle.remove()", "                pass"),
        ("if get_ident() != thread:", "if False:"),
        tests="forward",
    ),
    *changes_of(
        "forward/hugging_face.py",
        ("/ share.sum(1, keepdim=True)", "/ share.shape[1]"),
        ("main = main.clone()", "main = main"),
        ("eps ** 0.75 * size", "eps ** 0.05 * size"),
        tests="forward",
    ),
    # -------------------------------------------------------------------------------------------------------- alignment
    *changes_of(
        "alignment/scoring.py",
        ("hit_sure / max(sure, 1)", "hit_sure / max(found, 1)"),
        ("(0.025, 0.975)))", "(0.25, 0.75)))"),
        ("(t + 0.5) / targets", "t / targets"),
    ),
    *changes_of("alignment/symmetrisation.py", ("s for s, _ in links) or all", "s for s, _ in links) and all")),
    *changes_of(
        "alignment/links.py",
        ("(t, s) if self.swapped else (s, t)", "(s, t)"),
        ("sorted(gold.possible - gold.sure)", "sorted(gold.possible)"),
    ),
    *changes_of(
        "alignment/methods.py",
        ("if layer not in (None, len(maps))", "if False"),
        ("[..., : record.weights.shape[-1]]", ""),
    ),
    # ------------------------------------------------------------------------------------------------------------ study
    *changes_of(
        "study/run/runner.py",
        (
            "            except FATAL:\n                raise\n            except NoEvidenceError:",
            "            except NoEvidenceError:",
        ),
        (
            "        except FATAL:\n            raise\n        except Exception:\n            return",
            "        except Exception:\n            return",
        ),
    ),
    *changes_of(
        "study/run/store.py",
        ('execute("ROLLBACK")', 'execute("COMMIT")'),
        ("application == _APPLICATION and version", "version == -1 and version"),
        ("if digest_of_rows([(name, content)]) != digest:", "if False:"),
        ("            self._recover()\n", "            pass\n"),
    ),
    *changes_of(
        "study/run/finished.py", ("return None if value != value else value", "return value or None"), tests="study/run"
    ),
    *changes_of("study/run/sums.py", ("found.get(part, nothing) != kept.get(part)", "False"), tests="study/run"),
    *changes_of("study/run/plan.py", ("places.get(_text(record(thing)), len(places))", "0"), tests="study/run"),
    *changes_of(
        "study/run/runner.py", ("self.generations[number] == generation", "True"), tests="study/run"
    ),
    *changes_of(
        "study/metrics/order.py",
        ("fraction * count - 1e-9", "fraction * count"),
        ("descending=True, stable=True", "descending=True"),
    ),
    *changes_of(
        "study/metrics/perturbed.py",
        ("whole_units(keep | ~scored", "whole_units(keep & ~scored"),
        ("for name in names])[place]", "for name in names])"),
    ),
    *changes_of(
        "study/metrics/scored_texts.py",
        ("self.scores if self.drawn", "self.scores if not self.drawn"),
        tests="study/metrics/test_perturbed.py",
    ),
    *changes_of("study/metrics/soft.py", ("else 1 - shares(scored)", "else shares(scored)")),
    *changes_of(
        "study/metrics/removal.py",
        ("[:, -length:]", "[:, :length]"),
        ("_never_empty(left, mask)", "left"),
    ),
    *changes_of(
        "study/metrics/normalised.py",
        ("place[examples] >= counts[:, None]", "place[examples] > counts[:, None]"),
        ("order[first.sort().values[:beams]]", "order[:beams]"),
    ),
    *changes_of("study/metrics/captums.py", ("digest_of_tensors(gates)", "0")),
    *changes_of(
        "study/tokenized.py",
        ("start < span[1] and span[0] < end", "start <= span[1] and span[0] < end"),
        ("[start, *self._ids(example.written, target=True)]", "[start]"),
        tests="study/test_tasks.py",
    ),
    *changes_of("study/all_pairs.py", ("own[:, None, :])", "own[:, :, None])"), tests="study/test_agreement.py"),
    *changes_of("study/metrics/plausibility.py", ("precision[1:] if area", "precision[:-1] if area")),
    *changes_of("study/metrics/curves.py", ("first if self.inserts else ~first", "first")),
    *changes_of(
        "study/metrics/contexts.py",
        ("generator=generator) < 0.5", "generator=generator) < 2"),
        ("found / counts.clamp(1, self.k)", "found / self.k"),
        ("keep = ~top(", "keep = top("),
    ),
    *changes_of(
        "head_activity/corpus.py",
        ("        if other:\n", "        if False:\n"),
        tests="cli/test_heads.py",
    ),
    *changes_of("cli/heads.py", ("if part not in done]", "]")),
    *changes_of(
        "study/planted/contexts.py",
        ("tuple(places[chain][: step + 1])", "tuple(places[chain][step:])"),
        tests="study/test_contexts.py",
    ),
    *changes_of(
        "study/metrics/perturbed.py",
        ("[scored.target, scored.foil]", "[scored.foil, scored.target]"),
        tests="study/test_contrast.py",
    ),
    *changes_of(
        "pictures.py", ("places.diff() != 1", "places.diff() == 1"), tests="attr/test_sight_and_sound.py"
    ),
    *changes_of(
        "attr/llm.py",
        ("**_fixed_arguments(self.attr_method), **arguments}", "**arguments}"),
        ("or (ahead and not self._last_row_stands_alone())", ""),
        tests="attr/test_sight_and_sound.py",
    ),
    *changes_of(
        "study/report/statistics.py",
        ("np.maximum.accumulate(", "("),
    ),
    *changes_of(
        "study/report/effects.py",
        ("differences.mean() / differences.std(ddof=1)", "differences.mean() / differences.std()"),
        tests="study/report",
    ),
    *changes_of(
        "study/report/resampling.py",
        ("(6 * (centred**2).sum() ** 1.5)", "(centred**2).sum() ** 1.5"),
        ("ndtri((1 - confidence) / 2)", "ndtri(1 - confidence)"),
        ("/ max(k - 1, 1)", "* 0"),
        ("max(by_tail, self._as_far(hypothesis))", "by_tail"),
        ("max(by_tail, self._as_far(hypothesis))", "self._as_far(hypothesis)"),
        ("(further + self.without_spread + 1)", "(further + 1)"),
    ),
    *changes_of(
        "study/report/cells.py",
        ("if name != ORACLE and not", "if not"),
        ("not in (reference, ORACLE)", "not in (reference,)"),
    ),
    *changes_of("study/report/tables.py", (".n for method in means}) != 1", ".n for method in means}) < 1")),
    *changes_of("study/report/stability.py", ("order[1:] * order[0]", "order * order[0]")),
    *changes_of("study/metrics/leave_one_out.py", ("scored.scores.abs(), distances", "scored.scores, distances")),
    *changes_of("study/metrics/randomised.py", ("[abs(spearman(a", "[(spearman(a")),
    *changes_of("study/scorers/floor_and_ceiling.py", ("*([number] if number else [])", "0")),
    *changes_of("study/batches.py", ('text.seed("batch")', "0")),
    *changes_of("study/agreement.py", ("** (depths - 1)", "** depths")),
    # ------------------------------------------------------------------------------------------------------------- attr
    *changes_of(
        "attr/_chain.py",
        ("own and not record.fed.is_all_of(own)", "False"),
        ("not of_keys.fed.is_all_of(fed.values)", "False"),
        tests="attr/test_answer.py",
    ),
    *changes_of(
        "attr/_reduction.py",
        ("if not torch.equal(rows.cpu()", "if False and not torch.equal(rows.cpu()"),
        ("row.masked_fill(~_beside(real, row).to(row.device), 0)", "row"),
    ),
    *changes_of(
        "attr/_sequences.py",
        ("keys, True) and record.call.kind", "keys, True) or record.call.kind"),
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
        ("counted / counted.sum(1, keepdim=True)", "counted / counted.shape[1]"),
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
        ('tolerance("split", bias.dtype) * size', "1e3 * size"),
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
    # ------------------------------------------------------------------------------------------------------- operations
    *changes_of("operations/kinds.py", ('DROPOUT: "dropout dropout1d', 'DROPOUT: "dropout1d'), tests="capture linear"),
    *changes_of(
        "operations/modes.py",
        ("if rule is None or threading.get_ident() != self._thread:", "if rule is None:"),
        ("with self:", "if True:"),
    ),
    *changes_of(
        "operations/operation.py",
        ('self.argument(1, "p", 0.5) > 0', 'self.argument(1, "p", 0.5) >= 0'),
        ("out = into.clone()", "out = into"),
        ('if name != "inplace"}', "}"),
    ),
    *changes_of("operations/places.py", ("(not isinstance(self.source", "(isinstance(self.source")),
    *changes_of(
        "operations/places.py",
        ("if size in (1, anchor.length) or bool((distinct != size).any()):", "if size in (1, anchor.length):"),
        ("cell * grid[-1] + first // width, size * width", "cell * grid[-1] + first // width, size"),
        tests="capture/test_in_reach.py",
    ),
    *changes_of(
        "operations/formats.py",
        ("return whole - bias, bias[0]", "return whole, bias[0]"),
        ("offset = key.shape[-2] - query.shape[-2] if", "offset = 0 if"),
        tests="capture/test_formats.py",
    ),
    # ------------------------------------------------------------------------------------------------------------ proof
    *changes_of(
        "proof/erasing.py",
        ('"proved" if worst <= allowed else "wrong"', '"proved"'),
        ("if error > TOLERANCE * scale and _are_rearranged(output - changed, expected):", "if True:"),
        tests="proof/test_prove.py",
    ),
    *changes_of(
        "proof/tokens.py",
        ('if error > tolerance("record", output.dtype):', "if False:"),
        tests="proof/test_prove.py",
    ),
    # ---------------------------------------------------------------------------------------------------------- capture
    *changes_of(
        "capture/certificate.py",
        ("4 * torch.finfo(dtype).eps * beside", "0 * beside"),
        ("remembered[0] != depends_on", "False", "what is out of date fails the check, which then reads W_O anew"),
        tests="capture/test_untouched.py capture/test_refusals.py capture/test_hand_written.py",
    ),
    *changes_of(
        "capture/masks.py",
        ("allowed = allowed & shallow", "pass"),
        ("if columns.cut:", "if False:"),
        tests="capture/test_real_tokens.py",
    ),
    *changes_of(
        "capture/real_tokens.py",
        ("tells[:, -1] |= everything[:, -1]", "pass"),
        ("real &= ~_only", "real &= _only"),
        tests="capture/test_real_tokens.py",
    ),
    *changes_of("capture/ledger.py", ("covered |= softmax.ancestors", "covered |= 0"), tests="capture/test_ledger.py"),
    *changes_of(
        "capture/opaque.py",
        ("self._unwritten.discard(written)", "pass"),
        ("if bits and (out", "if False and (out"),
        tests="capture/test_ledger.py",
    ),
    *changes_of(
        "capture/layout.py",
        ("if (counts != counts[0]).any():", "if False:"),
        ("weights.numel() == math.prod(lead) * query * key", "True"),
        ("if self.values_in_order:", "if True:"),
    ),
    *changes_of(
        "capture/reader.py",
        ("actual = actual - offset", "actual = actual + offset"),
        ("if not all(mixture.unchanged for mixture in mixtures):", "if False:"),
        tests="capture/test_hand_written.py capture/test_refusals.py",
    ),
    *changes_of(
        "capture/certificate.py",
        ("if error <= self.tolerance:", "if True:"),
        ("self.actual.gather(1, rows)", "self.actual[:, : rows.shape[1]]"),
        tests="capture/test_rows.py",
    ),
    *changes_of(
        "capture/record.py",
        ("index=positions.index[numbers[0].to(positions.index.device)]", "index=positions.index"),
        tests="maps/test_selection.py maps/test_reading.py",
    ),
    *changes_of(
        "capture/rows.py",
        ("self.certificate.joined(self._checked(weights, rows))", "self.certificate"),
        ("asked[where] = self", "asked[:] = self"),
        ("if not self.unchanged():", "if False:"),
    ),
    *changes_of(
        "capture/weights.py",
        ("weights.masked_fill_(nothing, 0.0)", "weights"),
        ("** -0.5 if scale", "** 0.5 if scale"),
        ("int(numbers.amax()) + 1)", "int(numbers.amax()))"),
        ("torch.arange(first, keys", "torch.arange(keys - first"),
        tests="capture/test_hand_written.py capture/test_libraries.py capture/test_rows.py",
    ),
    *changes_of(
        "capture/joining.py",
        ("tokens[0].argsort()", "tokens[0].argsort(descending=True)"),
        tests="capture/test_written_in_pieces.py",
    ),
    *changes_of("capture/kind.py", (".abs().amax(-1) > 0", ".amax(-1) > 0"), tests="capture/test_changed_weights.py"),
    *changes_of(
        "capture/kind.py",
        ('if self._ahead[structure].is_avoided(weights) else "self"', 'if query == key else "self"'),
        tests="capture/test_positions.py attr/test_what_is_computed.py",
    ),
    # --------------------------------------------------------------------------------------------------- capture/blocks
    *changes_of(
        "capture/blocks/check.py",
        ("max(_largest(actual[kept]), beside)", "_largest(actual[kept]) + 1e3"),
        ("kept = (rows >= 0)", "kept = (rows >= -1)"),
    ),
    *changes_of("capture/blocks/read.py", ("torch.arange(key - query, key", "torch.arange(0, query")),
    *changes_of(
        "capture/blocks/read.py",
        ("part + residual if norm is None else output", "part + residual"),
        ("return state - known, known", "return known, state - known"),
        tests="capture/test_blocks.py",
    ),
    # ----------------------------------------------------------------------------------------------------- intervention
    *changes_of(
        "intervention/replay.py",
        ("if error > self._tolerance:", "if error > 1e3 * self._tolerance:"),
        ("(weights @ values - part)", "(weights @ values + part)"),
        tests="intervention/test_value_zeroing_maps.py",
    ),
    *changes_of(
        "intervention/zeroing.py",
        ("& (scores <= rounding), 0)", "& (scores < 0), 0)"),
        (
            "(p.layout.shape[0], p.layout.shape[2]) == (batch, query)][-1]",
            "(p.layout.shape[0], p.layout.shape[2]) == (batch, query)][0]",
        ),
        ("product.keys != record.weights.shape[-1]", "False"),
        tests="intervention/test_value_zeroing_maps.py",
    ),
    *changes_of(
        "operations/precision.py",
        ('"replay": (1e-9, 1e-4, 5e-3, 5e-2)', '"replay": (1e-6, 1e-1, 5e-0, 5e-0)'),
        tests="intervention/test_value_zeroing_maps.py",
    ),
    # ----------------------------------------------------------------------------------------------------------- linear
    *changes_of(
        "linear/contributions.py",
        ("reached | self.reached", "reached & self.reached"),
        ("torch.where(gradient == 0, 0, leaf", "torch.where(gradient > torch.inf, 0, leaf"),
    ),
    *changes_of(
        "linear/contributions.py",
        ("if not error <= self.tolerance:", "if False:"),
        tests="attr/test_decompx.py",
    ),
    *changes_of(
        "linear/fused.py",
        ("return (scaled - scaled.mean(ctx.axes, keepdim=True))", "return (scaled)"),
        ("unflatten(-3, (ctx.heads, -1)).sum(-3)", "unflatten(-3, (ctx.heads, -1)).mean(-3)"),
        ("<= rows[:, None]", "< rows[:, None]"),
        tests="linear",
    ),
    *changes_of(
        "linear/rules/products.py",
        ("return 0.5 * (op.again", "return 1.0 * (op.again"),
        ("x * gate.detach()", "x * 0.5 * gate.detach()"),
        tests="linear",
    ),
    *changes_of("linear/run.py", ("if not sources.is_gate(tensor)", "if True"), tests="linear"),
    *changes_of("linear/sources.py", ("if op.name in _EXITS:", "if False:"), tests="linear"),
    *changes_of("linear/rules/norms.py", ("- mean * scale", "+ mean * scale"), tests="linear"),
    *changes_of("linear/rules/activations.py", ("(y - z * slope) * one", "(y + z * slope) * one"), tests="linear"),
    # -------------------------------------------------------------------------------------------------------------- cli
    *changes_of(
        "cli/loading.py",
        ("if bars:", "if not bars:"),
        ("speech.set_verbosity(levels[0])", "pass"),
        ("default=None)\n\n\ndef _embedded(", "default=None) and None\n\n\ndef _embedded("),
        tests="cli/test_loading.py cli/test_main.py",
    ),
    *changes_of(
        "tables/layout.py",
        ("len(seen) + wide", "len(seen)"),
        ("if room < 0:", "if room < 1:"),
        tests="cli/test_table.py",
    ),
    *changes_of(
        "tables/spelling.py",
        ('{html.escape(cell)}</{kind}>', '{cell}</{kind}>'),
        (r'"_": r"\_", ', ""),
        ('spelled.startswith(("[", "*"))', "False"),
        tests="test_tables.py",
    ),
    *changes_of(
        "exports/attention_views.py",
        ("if rows != columns:", "if False:"),
        ('if MEASURES[quantity].role == "norm":', "if False:"),
        ("_source(maps, i) == decoder", "True"),
        tests="exports",
    ),
    *changes_of(
        "visualization/page.py",
        ('"pdf.fonttype": 42', '"pdf.fonttype": 3'),
        ('"svg.fonttype": "none"', '"svg.fonttype": "path"'),
        ("given[0] / (BODY * self._factor)", "given[0] / BODY"),
        tests="visualization/test_papers.py",
    ),
    *changes_of("visualization/panels.py", ("if token not in without]", "]"), tests="visualization/test_papers.py"),
    *changes_of(
        "comparison/tasks.py",
        ("values.masked_fill(~self.allowed, -torch.inf)", "values"),
        ("1 - chances[:, outside].sum(-1)", "chances[:, outside].sum(-1)"),
        ("places[-1 if last else 0]", "0"),
        tests="cli/test_compare_tasks.py",
    ),
    *changes_of(
        "comparison/compared.py", ('if self.specials == "drop":', "if False:"), tests="cli/test_compare_tasks.py"
    ),
    *changes_of(
        "explanation.py",
        ("html.escape(label)}</span>", "label}</span>"),
        ("if self.real[example, place]", "if True"),
        ("method = copy(method)", "pass"),
        tests="test_explanation.py",
    ),
    *changes_of("cli/tokens.py", ("if name in words else name", "if name is None else name")),
    *changes_of("cli/arguments.py", ("places.count(place) > 1", "False"), ('"-" not in outputs', "True")),
    *changes_of("cli/__init__.py", ("return 130", "return 0"), tests="cli/test_main.py"),
    *changes_of("__main__.py", ("except KeyboardInterrupt:", "except MemoryError:"), tests="cli/test_main.py"),
    *changes_of("explanation.py", ("if asked is not method:", "if False:"), tests="test_explanation.py"),
    *changes_of("methods.py", ("if show_progress and ", "if False and "), tests="test_methods.py"),
    # ---------------------------------------------------------------------------------------------------------- methods
    *changes_of(
        "methods.py",
        ("np.random.set_state(state)", "pass"),
        ("each[row : row + 1]", "each[:1]"),
        ("_seeded(seed if self.method.seeded else None", "_seeded(None"),
    ),
]  # fmt: skip
