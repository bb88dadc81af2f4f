"""InformationFlowRoutes: the routes of its authors, what a score is, and what a graph tells, exports and refuses."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LongformerConfig, LongformerForSequenceClassification

from captum_norm import HFForward, InformationFlowRoutes, RouteEdge, RouteGraph, RouteNode, SpanTrace
from captum_norm.capture import recording
from captum_norm.functional import route_shares
from tests.attr.models import ids, tiny
from tests.attr.test_span_trace import published

close = torch.testing.assert_close


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("renormalise", [False, True])
def test_routes_of_running_models_are_those_of_the_authors_code(oracles, kind, renormalise):
    model, flashtrace = published(oracles, kind)
    file = np.load(oracles / f"routes_{kind}.npz")
    tokens = torch.from_numpy(flashtrace["0/input_ids"]).view(1, -1)
    name = "renormalised" if renormalise else "full"
    threshold = float(file["path_threshold"])
    for number, start in enumerate(file["path_starts"]):
        if renormalise:  # parts of at most 0.04 are taken out first, then edges of at most 0.03
            method = InformationFlowRoutes(model, threshold=float(file["renormalizing_threshold"]), renormalise=True)
        else:
            method = InformationFlowRoutes(model, threshold=threshold)
        scores = method.attribute(tokens, position=int(start))
        [[graph]] = method.report.graphs
        into_mid = torch.zeros(graph.layers, graph.length, graph.length)
        for edge in graph.edges:
            into_mid[edge.layer, edge.target, edge.source] = edge.weight
        expected = file[f"paths_{name}_{number}/into_mid"]
        weights = torch.from_numpy(file[f"graph_{name}/into_mid"])
        if renormalise:
            expected = expected & (weights.numpy() > 0.04)
        assert np.array_equal(into_mid > 0, expected)
        chosen = torch.from_numpy(expected)
        close(into_mid[chosen].double(), weights[chosen], rtol=0, atol=2e-3)
        close(scores[0], graph.tokens.to(scores))


@pytest.fixture(scope="module")
def routes():
    model, tokens = tiny("GPT2").double(), ids(2, 6)
    method = InformationFlowRoutes(model, threshold=0.0)
    return model, tokens, method.attribute(tokens, position=4), method.report.graphs


def test_a_score_is_the_largest_threshold_that_still_reaches_the_token(routes):
    _, _, scores, graphs = routes
    for example, [graph] in enumerate(graphs):
        for position in range(6):
            score = float(graph.tokens[position])
            assert score == pytest.approx(float(scores[example, position]))
            if score:
                assert graph.above(score - 1e-9).tokens[position] > 0
                assert not graph.above(score + 1e-9).tokens[position]
        assert graph.tokens[5] == 0  # behind the explained row


def test_edges_are_span_traces_shares_of_single_rows(routes):
    """Heads together, in every layer; and what is not the tokens' or the residual's is the biases'."""
    model, tokens, _, graphs = routes
    span = SpanTrace(model)
    for row in range(5):
        span.attribute_each(tokens, positions=[row])
        for example, [graph] in enumerate(graphs):
            for layer in range(graph.layers):
                found, residual = torch.zeros(6).double(), 0.0
                for edge in graph.edges:
                    if (edge.layer, edge.target) == (layer, row):
                        found[edge.source] += edge.weight - edge.residual
                        residual += edge.residual
                        assert sum(share for _, share in edge.heads) == pytest.approx(edge.weight - edge.residual)
                if found.any():
                    close(found, span.report.tokens[layer][example].double())
                    assert residual == pytest.approx(float(span.report.residual[layer, example]))


@pytest.mark.parametrize("threshold", [0.1, 0.75])  # behind 0.75 a state of which no part has that much
def test_a_higher_threshold_gives_the_same_graph_as_one_that_is_cut_later(routes, threshold):
    model, tokens, _, graphs = routes
    method = InformationFlowRoutes(model, threshold=threshold)
    scores = method.attribute(tokens, position=4)
    for example, [graph] in enumerate(graphs):
        close(method.report.graphs[example][0].tokens, graph.above(threshold).tokens)
        close(scores[example], graph.above(threshold).tokens)
        found, cut = (
            {edge[:3]: (edge.weight, *(head for head, _ in edge.heads)) for edge in one.edges}
            for one in (method.report.graphs[example][0], graph.above(threshold))
        )
        assert found == {edge: pytest.approx(weight) for edge, weight in cut.items()}


def test_padding_and_batches_change_nothing():
    model, tokens = tiny("GPT2").double(), ids(2, 6)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    method = InformationFlowRoutes(HFForward(model), threshold=0.01)
    both = method.attribute(tokens, additional_forward_args=(mask,), target=3)
    close(both[1, :4], method.attribute(tokens[1:, :4], target=3)[0])
    assert not both[1, 4:].any()
    rows = method.attribute_each(tokens[:1], positions=[2, 5])
    close(rows[1, 0], both[0])
    assert len(method.report.graphs[0]) == 2


GRAPH = RouteGraph(
    2, 3, 2, 2, 0.1,
    (
        RouteEdge(1, 0, 2, 0.4, 0.0, ((0, 0.25), (1, 0.15))), RouteEdge(1, 2, 2, 0.5, 0.5, ()),
        RouteEdge(0, 0, 0, 0.9, 0.9, ()), RouteEdge(0, 1, 2, 0.2, 0.0, ((1, 0.2),)),
    ),
    (RouteNode(1, 2, 0.3), RouteNode(0, 0, 0.75), RouteNode(0, 2, 0.25)),
)  # fmt: skip


def test_a_graph_tells_by_token_source_layer_and_head():
    close(GRAPH.tokens, torch.tensor([0.4, 0.2, 0.0]).double())
    close(GRAPH.sources([(0, 2), (2, 3)]), torch.tensor([0.4, 0.0]).double())
    close(GRAPH.by_layer, torch.tensor([[0.45, 0.1, 0.0], [0.4, 0.0, 0.5]]).double())
    close(GRAPH.by_head, torch.tensor([[0.0, 0.1], [0.25, 0.15]]))
    close(GRAPH.by_feed_forward, torch.tensor([0.5, 0.3]).double())
    assert [edge[:3] for edge in GRAPH.above(0.2).edges] == [(1, 0, 2), (1, 2, 2), (0, 0, 0)]
    assert GRAPH.above(0.2).edges[0].heads == ((0, 0.25),)


def test_graphs_are_written_as_json_dot_and_tables():
    graph = GRAPH.labelled(["the", 'a "quote"', "end"])
    assert RouteGraph.from_json(graph.to_json()) == graph
    assert json.loads(graph.to_json())["edges"][0]["heads"] == {"0": 0.25, "1": 0.15}
    dot = graph.to_dot()
    assert dot.startswith("digraph")
    assert r'"0:1" [label="a \"quote\" · 0"];' in dot
    assert '"1:0" -> "2:2" [label="0.40"' in dot
    table = graph.to_pandas()
    assert list(table["from"]) == ["the", "end", "the", 'a "quote"']
    assert table["weight"].sum() == pytest.approx(2.0)


def test_what_has_no_routes_is_refused():
    with pytest.raises(ValueError, match="threshold should be from 0 up to 1, a share, got 1"):
        InformationFlowRoutes(nn.Linear(2, 2), threshold=1)
    with pytest.raises(ValueError, match=r"made with the threshold 0.1, so that 0.05 should be"):
        GRAPH.above(0.05)
    with pytest.raises(ValueError, match=r"\(2, 4\) holds none of the 3 positions"):
        GRAPH.sources([(2, 4)])
    with pytest.raises(ValueError, match="2 labels for 3 positions"):
        GRAPH.labelled(["a", "b"])
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    with pytest.raises(ValueError, match=r"InformationFlowRoutes: the block .* cannot be taken in"):
        InformationFlowRoutes(lambda x: attention(x, x, x)[0]).attribute(torch.randn(1, 3, 8))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_position_with_two_keys_is_one_source(layers):
    """Longformer's global queries read keys of their own from every position."""
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_labels": 3}
    config = LongformerConfig(**sizes, num_hidden_layers=layers, attention_window=4, max_position_embeddings=64)
    torch.manual_seed(0)
    model, tokens = LongformerForSequenceClassification(config).eval(), torch.randint(3, 99, (1, 9))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6 if weight.ndim > 1 else 1)
    method = InformationFlowRoutes(model, threshold=0.0)
    records = []
    with torch.no_grad(), recording(records.append, sources=(tokens,), model=model, blocks=True):
        model(tokens)
    top = records[-1]
    assert top.keys.index.tolist() == [*range(9), *range(9)]
    shares = route_shares(top.weights, top.values, top.W_O, top.block.residual, top.block.output, norm=[top.block.norm])
    folded = shares.attention[0, ..., :9] + shares.attention[0, ..., 9:]
    for row in (0, 4):
        scores = method.attribute(tokens, target=0, position=row)
        [[graph]] = method.report.graphs
        edges = [edge for edge in graph.edges if edge.layer == layers - 1]
        for edge in edges:
            by_heads = torch.tensor([dict(edge.heads).get(head, 0.0) for head in range(4)])
            close(by_heads, folded[:, row, edge.source], rtol=1e-4, atol=1e-6)
        assert sum(edge.weight for edge in edges) == pytest.approx(1 - float(shares.bias[0, row]), abs=1e-5)
        close(scores[0], graph.tokens.to(scores))
        assert bool((scores > 0).all()) or row  # the global row reads every position


def test_encoders_have_routes_too():
    model = tiny("Bert").double()
    method = InformationFlowRoutes(HFForward(model), threshold=0.0)
    scores = method.attribute(ids(2, 5), target=1)
    assert scores.shape == (2, 5)
    assert bool((scores > 0).all())
