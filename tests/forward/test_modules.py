"""The modules of a model are those that torch finds, in its order, each once and under its parent's name for it."""

from torch import nn

from captum_norm.forward.modules import modules_within


def test_modules_are_those_of_torch_in_its_order():
    shared, inner = nn.Linear(2, 2), nn.ModuleList([nn.GELU()])
    model = nn.ModuleDict({"first": nn.Sequential(shared, nn.ReLU()), "second": shared, "third": inner})
    model["first"].register_module("none", None)
    found = modules_within(model)
    assert list(found) == list(model.modules())
    assert list(found.values()) == [name.rpartition(".")[2] for name, _ in model.named_modules()]
    assert found[shared] == "0"


def test_a_model_that_holds_itself_ends():
    model = nn.Sequential(nn.ReLU())
    model.register_module("again", model)
    assert len(modules_within(model)) == 2
