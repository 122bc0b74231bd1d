"""Several processes train one network together: on the CPU over gloo, started by torchrun as users start them."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import neurograft as ng
from neurograft.errors import InputError
from neurograft.training.processes import _loader


def test_a_loader_that_is_divided_already_is_refused():
    data = TensorDataset(torch.arange(23))
    divided = DataLoader(data, sampler=DistributedSampler(data, num_replicas=2, rank=0))
    with pytest.raises(InputError, match="has a DistributedSampler: pass one that has all samples"):
        _loader(divided)


SETTINGS = {"epochs": 4, "lr": 0.3, "momentum": 0.8, "schedule": "cosine"}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


class Branched(nn.Module):
    """A parameter that no output depends on."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = network(), nn.Linear(3, 3)

    def forward(self, x):
        return self.used(x)


def normalised():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 2))


def samples(count):
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    return TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())


class Stream:
    """Batches that are neither a DataLoader nor a list."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


KINDS = {"loader": lambda loader: loader, "list": list, "stream": Stream}


def run(size):
    """All that is compared: the results of one process, with batches of this size."""
    found = {}
    for count in (32, 8):
        for kind, made in KINDS.items():
            batches, validation = made(DataLoader(samples(count), batch_size=size)), samples(19)
            validation = made(DataLoader(validation, batch_size=4, shuffle=kind == "loader"))
            history = []
            tuned = ng.finetune(network(), batches, **SETTINGS, validation=validation, on_epoch=history.append)
            told = [(e.train_loss, e.validation.loss, e.validation.accuracy, e.validation.samples) for e in history]
            found[f"finetune {count} {kind}"] = tuned.state_dict(), torch.tensor(told)
    batches = DataLoader(samples(24), batch_size=size)
    teachers = [nn.Linear(3, 2), nn.Linear(3, 2)]
    found["distill"] = ng.distill(network(), teachers, batches, **SETTINGS, hard=0.5).state_dict()
    found["unused"] = ng.finetune(Branched(), batches, **SETTINGS).state_dict()
    found["bf16"] = ng.finetune(network().float(), [(x.float(), y) for x, y in batches], precision="bf16").state_dict()
    return found


def main(folder):
    """What each of several processes does."""
    found = run(4)
    loader = DataLoader(samples(35), batch_size=4, shuffle=True)
    ng.finetune(network(), loader, **SETTINGS)
    assert loader.sampler.generator is None  # as it was
    for kind, made in KINDS.items():  # the last round is filled up
        found[f"uneven {kind}"] = ng.finetune(network(), made(loader), **SETTINGS).state_dict()
    rank = torch.distributed.get_rank()
    shuffled = DataLoader(samples(35), batch_size=4, shuffle=True)
    course = {**SETTINGS, "validation": DataLoader(samples(19), batch_size=4, shuffle=True)}
    found["batch norm"] = ng.finetune(normalised(), shuffled, **course).state_dict()

    def stop(epoch):
        if epoch.number == 2:
            raise InterruptedError

    try:
        ng.finetune(normalised(), shuffled, **course, checkpoint=folder / "run", on_epoch=stop)
    except InterruptedError:
        found["resumed"] = ng.finetune(normalised(), shuffled, **course, checkpoint=folder / "run").state_dict()
    try:
        ng.finetune(normalised(), shuffled, **{**course, "lr": 0.1}, checkpoint=folder / "run")
    except ng.errors.CheckpointError as error:
        found["refused"] = str(error)
    try:
        wrong = [(x, torch.full_like(x[:, :2], torch.inf if n == 1 else 0)) for n, (x, _) in enumerate(shuffled)]
        ng.finetune(network(), wrong, loss=nn.functional.mse_loss)
    except ng.errors.TrainingDiverged as error:
        found["diverged"] = str(error)
    torch.save(found, folder / f"rank{rank}.pt")


PROGRAM = """
from pathlib import Path
import sys
import torch

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
from tests.training.test_processes import main

main(Path(sys.argv[1]))
"""


def start(folder, port, rank):
    """One of two processes, told what torchrun tells them."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        env={
            **{name: str(value) for name, value in place.items()},
            "MASTER_ADDR": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(ng.__file__).parents[1]}",
        },
    )


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path, float64):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with start(tmp_path, port, 0) as main_process, start(tmp_path, port, 1) as other:
        told = [process.communicate()[1] for process in (main_process, other)]
        assert (main_process.returncode, other.returncode) == (0, 0), "\n".join(told)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    for told in (first, second):
        assert "lr was 0.3 and is 0.1" in told.pop("refused")
        assert "epoch 1, batch 0: the loss is inf" in told.pop("diverged")
    torch.testing.assert_close(second, first, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(first["resumed"], first["batch norm"], rtol=0, atol=0)
    torch.manual_seed(0)
    for name, expected in run(8).items():
        tolerance = {"rtol": 1e-2, "atol": 1e-2} if name == "bf16" else {"rtol": 1e-9, "atol": 1e-11}
        torch.testing.assert_close(first[name], expected, equal_nan=True, **tolerance)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank0.pt", "rank1.pt", "run"]
