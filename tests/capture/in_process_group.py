"""A process group of one, in a process of its own: what each method finds of a sharded or synchronised model.

``python -m tests.capture.in_process_group WRAPPER FOLDER`` prints a line of JSON for each method.
"""

import json
import sys

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.capture.test_untouched import IDS, METHODS, classifier


def fsdp(model):
    """A layer is whole only while it runs."""
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPPERS = {"FSDP": fsdp, "DDP": DistributedDataParallel}


def found(wrapper, name):
    """How far a method's scores are from those of the plain model, and whether the model still answers and trains."""
    model, plain, method = WRAPPERS[wrapper](classifier()), classifier(), METHODS[name]
    off = method(model).attribute(IDS, target=1) - method(plain).attribute(IDS, target=1)
    with torch.no_grad():
        same = torch.equal(model(IDS).logits, plain(IDS).logits)
    model(IDS).logits.sum().backward()
    plain(IDS).logits.sum().backward()
    gradients = [tensor.grad for tensor in model.parameters()]
    whole = [getattr(g, "full_tensor", lambda g=g: g)() for g in gradients if g is not None]
    expected = [tensor.grad for tensor in plain.parameters() if tensor.grad is not None]
    trains = all(torch.allclose(a, b) for a, b in zip(whole, expected, strict=True))
    return {"name": name, "off": float(off.abs().max()), "same": same, "trains": trains}


if __name__ == "__main__":
    wrapper, folder = sys.argv[1:]
    distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    for name in METHODS:
        print(json.dumps(found(wrapper, name)), flush=True)
    distributed.destroy_process_group()
