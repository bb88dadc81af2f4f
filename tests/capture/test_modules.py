"""A record knows the modules that made it for as long as their model lives, and takes none of them along."""

import copy
import gc
import pickle

from torch import nn

from captum_norm.capture import AttentionCall
from captum_norm.capture.modules import Modules


def test_modules_are_a_sequence_while_the_model_lives():
    model = nn.Sequential(nn.Linear(2, 2))
    running = Modules([model, model[0]])
    assert (len(running), running[-1], running[:1], list(running)) == (2, model[0], (model,), [model, model[0]])
    assert running == (model, model[0])
    assert hash(running) == hash(Modules([model, model[0]]))
    assert running != [model]


def test_modules_go_with_the_model():
    model = nn.Sequential(nn.Linear(2, 2))
    call = AttentionCall("0", "self", 0, 1, "", (model, model[0]))
    assert call.module is model[0]
    del model
    gc.collect()
    assert call.module is None
    assert call.modules == ()


def test_without_the_innermost_no_other_stands_in_for_it():
    model = nn.Sequential(nn.Linear(2, 2))
    call = AttentionCall("0", "self", 0, 1, "", (model, model[0]))
    model[0] = nn.Identity()
    gc.collect()
    assert call.module is None


def test_copies_take_no_module_along():
    model = nn.Linear(2, 2)
    call = AttentionCall("fc", "self", 0, 1, "", (model,))
    again = pickle.loads(pickle.dumps(call))
    assert again == call
    assert (again.module, copy.deepcopy(call).module) == (None, None)
    assert "Linear" not in repr(call)
