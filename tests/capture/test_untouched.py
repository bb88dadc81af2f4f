"""The model does not notice that it is being read."""

import copy
import json
import subprocess
import sys
import threading
import warnings
import weakref

import accelerate
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertForSequenceClassification, BertModel, GPT2Config, GPT2LMHeadModel

import captum_norm
from captum_norm.capture import InexactCaptureError, recording
from captum_norm.linear import FrozenModel, NotFrozenError
from tests.capture.hand_written import BATCH, LENGTH, MODEL, WRITTEN, Attention

IDS = torch.tensor([[2, 14, 9, 33, 3], [2, 7, 13, 8, 3]])
MASK = (IDS != 0).long()


def bert(implementation="sdpa", **changes):
    sizes = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = BertConfig(**sizes, intermediate_size=32, attn_implementation=implementation, **changes)
    return BertModel(config).eval()


def hooks(model):
    names = [name for name in vars(nn.Module()) if name.endswith(("_hooks", "_hooks_with_kwargs"))]
    return {(module, name): len(getattr(module, name)) for module in model.modules() for name in names}


@pytest.fixture(params=["sdpa", "eager"])
def model(request):
    return bert(request.param)


def test_outputs_are_bit_equal_with_and_without_gradients(model):
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            expected = model(IDS, attention_mask=MASK)
            with recording():
                output = model(IDS, attention_mask=MASK)
        assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
        assert torch.equal(output.pooler_output, expected.pooler_output)


def test_gradients_through_a_recorded_forward_are_bit_equal(model):
    def gradients(context):
        model.zero_grad()
        with context:
            model(IDS, attention_mask=MASK).last_hidden_state.sum().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    plain, recorded = gradients(torch.enable_grad()), gradients(recording())
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))


@pytest.mark.parametrize("ending", ["success", "error", "interrupt", "refusal"])
def test_nothing_is_left_behind(model, ending):
    before = (hooks(model), model.config.to_dict(), model.training, torch.get_rng_state())
    state = copy.deepcopy(model.state_dict())
    try:
        with recording():
            model(IDS, attention_mask=MASK)
            if ending == "error":
                raise RuntimeError
            if ending == "interrupt":
                raise KeyboardInterrupt
            if ending == "refusal":
                raise InexactCaptureError
    except (RuntimeError, KeyboardInterrupt):
        pass
    after = (hooks(model), model.config.to_dict(), model.training, torch.get_rng_state())
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(before, after, strict=True))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model(IDS).last_hidden_state.grad_fn is not None


def test_train_mode_dropout_draws_the_same_random_numbers_in_eager_attention():
    model = bert("eager").train()
    torch.manual_seed(1)
    expected = model(IDS).last_hidden_state
    torch.manual_seed(1)
    with recording() as records:
        output = model(IDS).last_hidden_state
    assert torch.equal(output, expected)
    assert (records[0].weights == 0).any()  # the weights after dropout are what multiplied the values


def test_records_are_dropped_as_soon_as_they_are_handed_over(model):
    alive, seen = [], []

    def look(record):
        seen.append(sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(record.weights))

    with torch.no_grad(), recording(look) as records:
        model(IDS)
    assert records == []
    assert seen == [0, 0]


def test_another_thread_is_not_recorded():
    attention, x = Attention(WRITTEN["plain"]), torch.randn(BATCH, LENGTH, MODEL)
    with recording() as records:
        thread = threading.Thread(target=attention, args=(x,))
        thread.start()
        thread.join()
    assert records == []


def test_four_threads_record_the_same_model_at_once(model):
    with recording() as expected:
        model(IDS)
    found = {}

    def work(name):
        with recording() as records:
            model(IDS)
        found[name] = records

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for records in found.values():
        assert all(torch.equal(a.weights, b.weights) for a, b in zip(records, expected, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_recomputes_without_a_word(reentrant):
    attention = Attention(WRITTEN["scaled_dot_product_attention"])
    x = torch.randn(BATCH, LENGTH, MODEL, requires_grad=True)
    with recording() as records:
        output = checkpoint(attention, x, use_reentrant=reentrant)
    output.sum().backward()
    assert len(records) == 1
    assert x.grad is not None


def placed(model):
    """What its parameters and buffers are and where, by name."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: (type(t), t.device, t.dtype, t.shape, t.requires_grad, t.grad) for name, t in tensors}


METHODS = {
    "AttentionNorm": captum_norm.AttentionNorm,
    "ALTI": captum_norm.ALTI,
    "ValueZeroing": captum_norm.ValueZeroing,
    "AttentionRelevance": captum_norm.AttentionRelevance,
    "DecompX": captum_norm.DecompX,
    "DecompX, parts": lambda model: captum_norm.DecompX(model, bias="absdot"),
}


def classifier():
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    model = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=32, num_labels=3)).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def to_disk(model, folder):
    accelerate.disk_offload(model, str(folder), execution_device=torch.device("cpu"))


def to_cpu(model, folder):
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def layer_on_disk(model, folder):
    places = {"bert.embeddings": "cpu", "bert.encoder.layer.0": "disk", "bert.encoder.layer.1": "cpu"}
    places |= {"bert.pooler": "disk", "classifier": "cpu", "dropout": "cpu"}
    accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("place", [to_disk, to_cpu, layer_on_disk])
def test_weights_that_are_loaded_for_each_call_and_put_away_again_stay_so(place, name, tmp_path):
    plain, model, method = classifier(), classifier(), METHODS[name]
    place(model, tmp_path)
    before = placed(model)
    assert any(parameter.is_meta for parameter in model.parameters())
    found = method(model).attribute(IDS, target=1)
    assert placed(model) == before
    assert torch.allclose(found, method(plain).attribute(IDS, target=1), rtol=0, atol=1e-12)
    assert torch.equal(model(IDS).logits, plain(IDS).logits)


def test_a_frozen_model_whose_weights_are_put_away_has_no_copy_without_biases(tmp_path):
    model = classifier()
    to_disk(model, tmp_path)
    check = FrozenModel(model, IDS).check()
    assert check.leak is None
    assert check.worst < 1e-12


@pytest.mark.parametrize("name", METHODS)
def test_gradient_checkpointing_changes_no_score(name):
    plain, model, method = classifier(), classifier(), METHODS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the name that people know
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    found = method(model).attribute(IDS, target=1)
    assert torch.allclose(found, method(plain).attribute(IDS, target=1), rtol=0, atol=1e-12)
    model(IDS).logits.sum().backward()
    plain(IDS).logits.sum().backward()
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs if b.grad is not None)


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["FSDP", "DDP"])
def test_sharded_and_synchronised_models_are_read_and_train_on(wrapper, tmp_path):
    """In a process of its own, as weights that were freed end the interpreter."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.capture.in_process_group", wrapper, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert [one["name"] for one in found] == list(METHODS), run.stderr[-2000:]
    assert all(one["off"] < 1e-12 and one["same"] and one["trains"] for one in found), found


def test_a_checkpoint_that_cuts_the_graph_is_refused_with_the_way_out():
    model = classifier()

    def state(layer, x):
        out = layer(x)
        return out[0] if isinstance(out, tuple) else out  # a tuple in transformers 4

    def forward(tokens):
        x = model.bert.embeddings(tokens)
        for layer in model.bert.encoder.layer:
            x = x + checkpoint(state, layer, x, use_reentrant=True)
        return model.classifier(x[:, 0])

    nothing = pytest.warns(UserWarning, match="None of the inputs have requires_grad")  # of the plain model too
    with nothing, pytest.raises(NotFrozenError, match=r"cut off.*use_reentrant=True.*gradient_checkpointing_disable"):
        captum_norm.DecompX(forward).attribute(IDS, target=1)


def test_compiled_models_run_eagerly_for_the_time_being():
    attention = Attention(WRITTEN["plain"])
    x = torch.randn(BATCH, LENGTH, MODEL)
    compiled = torch.compile(attention, backend="eager")
    with torch.no_grad(), recording() as records:
        compiled(x)
    assert len(records) == 1


def test_recordings_nest():
    attention, x = Attention(WRITTEN["plain"]), torch.randn(BATCH, LENGTH, MODEL)
    with recording() as outer:
        attention(x)
        with recording() as inner:
            attention(x)
    assert len(inner) == 1
    assert len(outer) == 2


def test_generation_with_a_cache_is_recorded_step_by_step():
    config = GPT2Config(vocab_size=60, n_embd=24, n_layer=2, n_head=3, n_positions=32, bos_token_id=0, eos_token_id=59)
    model = GPT2LMHeadModel(config).eval()
    arguments = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(IDS, **arguments)
    with recording() as records:
        output = model.generate(IDS, **arguments)
    assert torch.equal(output, expected)
    first = [record for record in records if record.call.name.endswith("h.0.attn")]
    assert [record.call.call for record in first] == [0, 1, 2]
    assert [tuple(record.weights.shape[-2:]) for record in first] == [(5, 5), (1, 6), (1, 7)]
    assert {record.call.kind for record in records} == {"causal"}
    assert first[0].keys is not None
    assert first[1].keys is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_is_certified_with_its_own_tolerance(dtype):
    model = bert().to(dtype)
    with torch.no_grad(), recording() as records:
        model(IDS, attention_mask=MASK)
    assert all(float(record.certificate) <= record.certificate.tolerance for record in records)
    assert records[0].values.dtype == dtype


def test_inference_mode_is_fine():
    with torch.inference_mode(), recording() as records:
        bert()(IDS)
    assert len(records) == 2


def test_one_module_called_many_times_counts_its_calls():
    attention, x = Attention(WRITTEN["plain"]), torch.randn(BATCH, LENGTH, MODEL)
    with recording() as records:
        attention(attention(x))
    assert [record.call.call for record in records] == [0, 1]
