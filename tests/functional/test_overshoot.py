"""The compiled way to overshoots gives what products in torch and the definition give, or is not taken."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_norm.functional import alti, compiled, overshoot
from captum_norm.functional.overshoot import CompiledOvershoots, OvershootsOfProducts, is_compiled
from tests.functional.definition import block_vectors, slow_alti
from tests.functional.test_alti import draw_alti, quietly

COMPILER = compiled._compiler()
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no compiler, or CAPTUM_NORM_COMPILED is 0")


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """Nothing is compiled yet, and the cache is an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for known in (compiled.library, is_compiled):
        known.cache_clear()
    yield tmp_path / "captum-norm"
    for known in (compiled.library, is_compiled):
        known.cache_clear()


def by_definition(y, f, w):
    """Overshoots, (query, key), and the largest size of each query; in float64."""
    y, f, w = y.double(), f.double(), w.double()
    t = torch.einsum("hqk,hkd->qkd", w, f)
    signs = torch.where(y < 0, -1.0, 1.0).double()
    over = (signs[:, None] * t - y.abs()[:, None]).clamp_min(0).sum(-1)
    return over, torch.einsum("hqk,hk->qk", w.abs(), f.abs().sum(-1)).amax(1)


@needs_compiler
@settings(max_examples=50)
@given(
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 9), st.integers(1, 64), st.integers(1, 40)),
    form=st.sampled_from(["plain", "cancelling heads", "ties", "zeros", "one large key"]),
    per_head=st.booleans(),
    seed=st.integers(0, 99),
)
def test_both_ways_are_the_definition_whatever_the_heads_signs_ties_and_zeros(sizes, form, per_head, seed):
    torch.manual_seed(seed)
    head, query, key, model = sizes
    y, f = torch.randn(query, model), torch.randn(head, key, model)
    weights, factors = torch.randn(head, query, key).softmax(-1), torch.randn(head if per_head else 1, query)
    if form == "cancelling heads":
        f[1::2] = 1e-4 * f[1::2] - f[::2][: head // 2]
    elif form == "ties":
        y, f, weights = y.round(), f.round(), (4 * weights).round() / 4
    elif form == "zeros":
        y[::2], f[:, ::3], weights[:, :, 1::2] = 0, 0, 0
    elif form == "one large key":
        weights, f[:, 0] = 1e-3 * weights, 1e3 * f[:, 0]
    over, largest = by_definition(y, f, weights * factors[..., None])
    for kind in (OvershootsOfProducts, CompiledOvershoots):
        way, towards = kind(y, factors), torch.zeros(query, key + 3)[:, 2:-1]
        way.take_off(towards, weights, way.prepared(f))
        assert (towards + 2 * over).abs().amax() <= 1e-6 * largest.amax().clamp_min(1e-30)
        torch.testing.assert_close(way.sizes.double(), largest, rtol=1e-5, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("gate", ["none", "one per head"])
def test_contributions_are_right_to_a_millionth_of_the_row_in_the_compiled_way(monkeypatch, gate, threads):
    monkeypatch.setattr(overshoot, "_COMPILED_FROM", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    block, _ = draw_alti((2, 5, 40, 0, 4, 24), dtype=torch.float32, gate=gate)
    block["weights"] = block["weights"].softmax(-1).tril()
    taken = []
    monkeypatch.setattr(overshoot, "_call", lambda name, *given, call=overshoot._call: taken.append(call(name, *given)))
    vectors = block_vectors(
        *[block[name] for name in ("weights", "values", "W_O", "residual", "norm")],
        own_keys=torch.arange(40).expand(2, -1), gate=block.get("gate"),
    )  # fmt: skip
    block["output"] = vectors.sum(dim=2).float()
    expected = slow_alti(vectors, block["output"], 1)
    assert ((quietly(**block) - expected).abs().amax(-1) < 1e-6 * expected.amax(-1)).all()
    assert taken


@needs_compiler
def test_what_is_not_finite_is_refused_in_the_compiled_way_as_well(monkeypatch):
    monkeypatch.setattr(overshoot, "_COMPILED_FROM", 1)
    for wrong in (torch.nan, torch.inf):
        for name in ("weights", "values", "output"):
            block, _ = draw_alti((1, 2, 9, 0, 4, 6), dtype=torch.float32)
            block[name].view(-1)[5] = wrong
            with pytest.raises(ValueError, match=f"alti: {name} is not finite"):
                alti(**block)


@needs_compiler
def test_a_library_is_made_once_and_kept_where_only_its_user_may_write(anew):
    assert is_compiled()
    [kept] = anew.iterdir()
    made = kept.stat().st_mtime_ns
    assert (anew.stat().st_mode & 0o777, kept.stat().st_mode & 0o777) == (0o700, 0o700)
    compiled.library.cache_clear()
    assert compiled.library("overshoot") is not None
    assert kept.stat().st_mtime_ns == made


@needs_compiler
@pytest.mark.parametrize("which", ["folder", "file", "link", "damaged"])
def test_what_others_may_have_put_there_is_not_loaded(anew, which):
    source = Path(compiled.__file__).with_name("overshoot.c")
    kept, foreign = anew / f"overshoot-{compiled._digest(source, COMPILER)}.so", anew / "foreign.c"
    anew.mkdir(mode=0o700)
    foreign.write_text("int foreign;")
    subprocess.run([*COMPILER, "-fPIC", "-shared", "-o", str(kept), str(foreign)], check=True)
    if which == "link":
        kept.symlink_to(kept.rename(anew / "elsewhere.so"))
    elif which == "damaged":
        kept.write_bytes(b"no library")
    else:
        (anew if which == "folder" else kept).chmod(0o777)
    library = compiled.library("overshoot")
    assert library is not None
    assert not library._name.startswith(str(anew))
    assert is_compiled()


@pytest.mark.parametrize("why", ["switched off", "no compiler", "it fails", "other numbers"])
def test_without_a_compiled_way_nothing_is_said_and_torch_does_it(anew, monkeypatch, why):
    if why == "switched off":
        monkeypatch.setenv("CAPTUM_NORM_COMPILED", "0")
    elif why == "other numbers":
        monkeypatch.setattr(overshoot, "_agree", lambda: False)
    else:
        monkeypatch.setenv("CC", "/nowhere/cc" if why == "no compiler" else "false")
    assert not is_compiled()
    way = overshoot.overshoots(torch.ones(1 << 10, 1 << 10), torch.ones(1, 1 << 10), 1 << 10, 1)
    assert type(way) is OvershootsOfProducts


@needs_compiler
@pytest.mark.slow
def test_several_processes_that_compile_at_once_all_have_it(tmp_path):
    command = [sys.executable, "-c", "from captum_norm.functional.overshoot import is_compiled; assert is_compiled()"]
    given = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    running = [subprocess.Popen(command, env=given, stderr=subprocess.PIPE) for _ in range(3)]
    assert [(process.communicate()[1], process.returncode) for process in running] == [(b"", 0)] * 3
    [kept] = (tmp_path / "captum-norm").iterdir()
    assert kept.suffix == ".so"
