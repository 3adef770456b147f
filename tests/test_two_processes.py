"""DDP and FSDP2: two processes that share a patched model's images, or its weights too, compute what one computes."""

import os
import subprocess
import sys

import pytest
import torch
from families import BARE_CASES, images, inputs
from modeling.laws import assert_equal_outputs, patched_model

from ttreg_hf import modeling

# a plain MLP, a gated one, and a head that attends to all tokens
FAMILIES = ("dinov2", "dinov3-gated", "siglip")
NUM_IMAGES = 4
BOTH = """
import sys
import torch
from families import BARE_CASES, images, inputs
from modeling.laws import patched_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from ttreg_hf import modeling

folder, rank, *families = sys.argv[1:]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=int(rank), world_size=2)
mesh = init_device_mesh("cpu", (2,))
model = patched_model(modeling, BARE_CASES[0], BARE_CASES[0].stock_model(attention="sdpa")).train()
parallel = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
parallel(images(4).chunk(2)[mesh.get_local_rank()]).last_hidden_state.square().mean().backward()
gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
torch.save(gradients, f"{folder}/parallel-{rank}.pt")
for case in (case for case in BARE_CASES if case.family.name in families):
    model = patched_model(modeling, case, case.stock_model(attention="sdpa"), num_test_time_registers=2).train()
    for block in case.blocks_of(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    parameters = dict(model.named_parameters())
    assert all(isinstance(parameter, DTensor) for parameter in parameters.values())
    held = {name: parameter.to_local().shape for name, parameter in parameters.items()}
    mine = {name: each.chunk(2)[mesh.get_local_rank()] for name, each in inputs(model, images(4)).items()}
    output = model(**mine)
    output.last_hidden_state.square().mean().backward()
    with torch.no_grad(), model.disable_test_time_registers():
        off = model(**mine)
    found = {
        "world": mesh.size(),
        "held": held,
        "gradients": {name: each.grad.full_tensor() for name, each in parameters.items() if each.grad is not None},
        "output": {name: tensor.detach() for name, tensor in output.items()},
        "off": dict(off),
    }
    torch.save(found, f"{folder}/{case.family.name}-{rank}.pt")
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the two processes found, files by family and process."""
    folder = tmp_path_factory.mktemp("two processes")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-c", BOTH, str(folder)]
    processes = [subprocess.Popen([*command, str(rank), *FAMILIES], env=environment) for rank in (0, 1)]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return folder


def test_two_processes_train_like_one(folder):
    case = BARE_CASES[0]
    model = patched_model(modeling, case, case.stock_model(attention="sdpa")).train()
    model(images(NUM_IMAGES)).last_hidden_state.square().mean().backward()
    expected = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    for rank in (0, 1):
        found = torch.load(folder / f"parallel-{rank}.pt")
        assert_equal_outputs({name: found[name] for name in expected}, expected, exact=False)


@pytest.mark.parametrize("case", [case for case in BARE_CASES if case.family.name in FAMILIES], ids=lambda c: c.name)
def test_a_sharded_model_gives_outputs_and_gradients_of_the_whole(case, folder):
    first, second = (torch.load(folder / f"{case.family.name}-{rank}.pt") for rank in (0, 1))
    stock = case.stock_model(attention="sdpa")
    whole = patched_model(modeling, case, stock, num_test_time_registers=2).train()
    assert first["world"] == second["world"] == 2
    for name, parameter in whole.named_parameters():
        shapes = [found["held"][name] for found in (first, second)]
        assert sum(shape.numel() for shape in shapes) == parameter.numel(), name
        assert min(shape[0] for shape in shapes) < parameter.shape[0], name

    given = inputs(whole, images(NUM_IMAGES))
    expected = whole(**given)
    expected.last_hidden_state.square().mean().backward()
    gradients = {name: each.grad for name, each in whole.named_parameters() if each.grad is not None}
    together = {name: torch.cat([first["output"][name], second["output"][name]]) for name in first["output"]}
    assert_equal_outputs(together, dict(expected), exact=False)
    assert_equal_outputs(first["gradients"], gradients, exact=False)
    assert_equal_outputs(second["gradients"], first["gradients"])

    with torch.no_grad():
        base = stock.train()(**given)
    off = {name: torch.cat([first["off"][name], second["off"][name]]) for name in first["off"]}
    assert_equal_outputs(off, dict(base), exact=False)
