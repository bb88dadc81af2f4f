"""Every attention call is listed, those that cannot be read with the reason."""



from captum_norm.maps import attention_layers, checked_calls
from tests.maps.records import IDS, inexact, record


def test_layers_are_listed_with_those_that_cannot_be_read(emitting):
    model = emitting(record("a"), inexact("b"))
    assert [call.name for call in attention_layers(model, IDS)] == ["a", "b"]
    found = checked_calls(model, IDS)
    assert [(c.certificate is None, c.refusal) for c in found] == [(False, ""), (True, "b: off by 0.5")]
