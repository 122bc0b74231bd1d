"""Several processes train one network together: on the CPU over gloo, started by torchrun as users start them."""

import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import neurograft as ng
from neurograft.errors import InputError
from neurograft.training.processes import Processes
from neurograft_experiments.data import Split


def crews(count):
    """Each process's view, all in this process; they exchange nothing."""
    device = torch.device("cpu")
    places = [SimpleNamespace(num_processes=count, process_index=index, device=device) for index in range(count)]
    return [Processes(place, seed=7) for place in places]


class Lazy:
    """Draws its order one by one, and between them other numbers, as shuffle buffers do."""

    def __iter__(self):
        left = list(range(23))
        while left:
            torch.rand(3)
            yield torch.tensor([left.pop(int(torch.randint(len(left), ())))])


def numbers(count=23):
    return TensorDataset(torch.arange(count))


SOURCES = {
    "loader": lambda: DataLoader(numbers(), batch_size=4, shuffle=True),
    "loader with a generator": lambda: DataLoader(
        numbers(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "short loader": lambda: DataLoader(numbers(5), batch_size=4, shuffle=True),
    "list": lambda: list(torch.arange(23).split(4)),
    "lazy": Lazy,
    "tensors": lambda: Split(torch.zeros(23, 1, 1, 1), torch.arange(23)).batches(4, shuffle=True),
}


def read(batch):
    return batch[-1].flatten().tolist() if isinstance(batch, (list, tuple)) else batch.flatten().tolist()


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("source", SOURCES)
def test_the_union_over_processes_is_the_epoch(source, count):
    expected = sorted(number for batch in SOURCES[source]() for number in read(batch))
    orders = []
    for epoch in (1, 2):
        rounds = [list(crew.rounds(SOURCES[source](), epoch)) for crew in crews(count)]
        assert len({len(own) for own in rounds}) == 1  # all take the same number of steps
        seen = [number for own in rounds for batch, counted in own if counted for number in read(batch)]
        assert sorted(seen) == expected
        orders.append(seen)
    if source not in ("list", "loader with a generator", "short loader"):
        assert orders[0] != orders[1]


def test_processes_drop_other_neurons():
    drawn = []
    for crew in crews(2):
        next(iter(crew.rounds(SOURCES["loader"](), 1)))
        drawn.append(torch.rand(4))
    assert not torch.equal(*drawn)


def test_a_loader_reads_only_its_own_samples():
    class Noted(torch.utils.data.Dataset):
        def __init__(self):
            self.read = []

        def __len__(self):
            return 16

        def __getitem__(self, index):
            self.read.append(index)
            return torch.tensor(index)

    data = Noted()
    list(crews(2)[1].rounds(DataLoader(data, batch_size=4), 1))
    assert data.read == [4, 5, 6, 7, 12, 13, 14, 15]


def test_a_loader_that_is_divided_already_is_refused():
    data = numbers()
    divided = DataLoader(data, sampler=DistributedSampler(data, num_replicas=2, rank=0))
    with pytest.raises(InputError, match="has a DistributedSampler: pass one that has all samples"):
        next(crews(2)[0].rounds(divided, 1))


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


def run(size):
    """All that is compared: the results of one process, with batches of this size."""
    found = {}
    for count in (35, 27, 5):
        for kind in ("loader", "list"):
            loader = DataLoader(samples(count), batch_size=size)
            batches = loader if kind == "loader" else list(loader)
            validation = DataLoader(samples(19), batch_size=4)
            history = []
            tuned = ng.finetune(network(), batches, **SETTINGS, validation=validation, on_epoch=history.append)
            told = [(e.train_loss, e.validation.loss, e.validation.accuracy, e.validation.samples) for e in history]
            found[f"finetune {count} {kind}"] = tuned.state_dict(), torch.tensor(told)
    batches = DataLoader(samples(27), batch_size=size)
    teachers = [nn.Linear(3, 2), nn.Linear(3, 2)]
    found["distill"] = ng.distill(network(), teachers, batches, **SETTINGS, hard=0.5).state_dict()
    found["unused"] = ng.finetune(Branched(), batches, **SETTINGS).state_dict()
    found["bf16"] = ng.finetune(network().float(), [(x.float(), y) for x, y in batches], precision="bf16").state_dict()
    return found


def main(folder):
    """What each of several processes does."""
    found = run(4)
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
