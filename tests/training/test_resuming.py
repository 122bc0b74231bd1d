"""A training that is stopped and started again ends as if nothing had happened."""

import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import neurograft as ng
from neurograft.checkpoints.atomic import PART
from neurograft.errors import CheckpointError, InputError


class Stopped(Exception):
    pass


class Noisy(torch.utils.data.Dataset):
    """Points with noise from all three random states, as augmentation draws it."""

    def __init__(self):
        self.points = torch.randn(96, 2, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        point = self.points[index]
        noise = torch.rand(()) + random.random() + numpy.random.rand()  # noqa: NPY002 - what is tested
        return point + 0.1 * noise.float(), int(point.norm() > 1.2)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def loader(**options):
    return DataLoader(Noisy(), batch_size=16, shuffle=True, **options)


SETTINGS = {"epochs": 5, "lr": 0.1, "schedule": "cosine", "validation": loader()}


def stopping(epoch):
    def on_epoch(done):
        if done.number == epoch:
            raise Stopped

    return on_epoch


def assert_same(one, other):
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"validation": None},
        {"optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=0.01), "schedule": "halve:2"},
        {"schedule": lambda done: 0.1 * (1 + done), "precision": "bf16"},
    ],
    ids=["best epoch", "last epoch", "adamw", "warm-up in bf16"],
)
def test_stopped_in_every_epoch_and_started_again(tmp_path, settings):
    settings = SETTINGS | settings
    history, undisturbed = [], []
    expected = ng.finetune(network(), loader(), **settings, on_epoch=undisturbed.append)
    file = tmp_path / "runs" / "training.pt"
    for epoch in range(6):
        with pytest.raises(Stopped):
            ng.finetune(network(), loader(), **settings, checkpoint=file, on_epoch=stopping(epoch))
    for _ in range(2):  # the second call finds a training that is over
        history.clear()
        tuned = ng.finetune(network(), loader(), **settings, checkpoint=file, on_epoch=history.append)
        assert_same(tuned, expected)
    told = [(e.number, e.train_loss, e.validation and e.validation.loss) for e in history]
    assert repr(told) == repr([(e.number, e.train_loss, e.validation and e.validation.loss) for e in undisturbed])
    assert [path.name for path in file.parent.iterdir()] == ["training.pt"]


def test_a_loader_with_its_own_generator_goes_on_where_it_was(tmp_path):
    def own():
        return loader(generator=torch.Generator().manual_seed(5))

    expected = ng.finetune(network(), own(), **SETTINGS)
    with pytest.raises(Stopped):
        ng.finetune(network(), own(), **SETTINGS, checkpoint=tmp_path / "run", on_epoch=stopping(3))
    batches = own()
    assert_same(ng.finetune(network(), batches, **SETTINGS, checkpoint=tmp_path / "run"), expected)
    assert torch.equal(batches.generator.get_state(), torch.Generator().manual_seed(5).get_state())


def test_patience_counts_on(tmp_path):
    model, batches = nn.Linear(2, 2), [(torch.randn(8, 2), torch.randint(2, (8,)))]
    settings = {
        "lr": 1e-30,
        "validation": batches,
        "patience": 4,
        "checkpoint": tmp_path / "run",
    }  # nothing gets better
    with pytest.raises(Stopped):
        ng.finetune(model, batches, **settings, on_epoch=stopping(3))
    for _ in range(2):
        history = []
        ng.finetune(model, batches, **settings, on_epoch=history.append)
        assert [epoch.number for epoch in history] == [0, 1, 2, 3, 4]


def test_distilling_too(tmp_path):
    teachers = [nn.Linear(2, 2), nn.Linear(2, 2)]
    expected = ng.distill(network(), teachers, loader(), epochs=3)
    with pytest.raises(Stopped):
        ng.distill(network(), teachers, loader(), epochs=3, checkpoint=tmp_path / "run", on_epoch=stopping(2))
    assert_same(ng.distill(network(), teachers, loader(), epochs=3, checkpoint=tmp_path / "run"), expected)
    with pytest.raises(CheckpointError, match="temperature was 2.0 and is 3.0"):
        ng.distill(network(), teachers, loader(), epochs=3, checkpoint=tmp_path / "run", temperature=3.0)
    with pytest.raises(CheckpointError, match="network 0 beside was"):
        ng.distill(network(), [nn.Linear(2, 2)], loader(), epochs=3, checkpoint=tmp_path / "run")
    with pytest.raises(CheckpointError, match="task was teachers and is labels"):
        ng.finetune(network(), loader(), epochs=3, checkpoint=tmp_path / "run")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.2}, "lr was 0.1 and is 0.2; name another file, or delete it to start anew"),
        ({"epochs": 6}, "epochs was 5 and is 6"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"schedule": lambda done: 0.5}, r"schedule was cosine and is \[0.5, 0.5, 0.5, 0.5, 0.5\]"),
        ({"optimizer": torch.optim.SGD}, "optimizer was None and is SGD"),
        ({"validation": [next(iter(loader()))]}, "validation was 6 batches and is 1 batches"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_training_is_refused(tmp_path, changed, message):
    file = tmp_path / "run"
    with pytest.raises(Stopped):
        ng.finetune(network(), loader(), **SETTINGS, checkpoint=file, on_epoch=stopping(1))
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match=f"{file} is of another training: .*{message}"):
        ng.finetune(network(), loader(), **(SETTINGS | changed), checkpoint=file)
    assert file.read_bytes() == before


def test_files_that_hold_no_training(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder: checkpoint= names a file"):
        ng.finetune(network(), loader(), checkpoint=tmp_path)
    (tmp_path / "text").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match="text cannot be read as a training: "):
        ng.finetune(network(), loader(), checkpoint=tmp_path / "text")
    torch.save(network().state_dict(), tmp_path / "weights")
    with pytest.raises(CheckpointError, match="weights is no checkpoint of a training"):
        ng.finetune(network(), loader(), checkpoint=tmp_path / "weights")


def test_a_file_that_cannot_be_written_is_found_before_the_first_step(tmp_path):
    (tmp_path / "file").touch()
    history = []
    with pytest.raises(CheckpointError, match="file/run could not be written: (Not a directory|File exists)"):
        ng.finetune(network(), loader(), checkpoint=tmp_path / "file" / "run", on_epoch=history.append)
    assert [epoch.number for epoch in history] == [0]


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    file = tmp_path / "run"
    with pytest.raises(Stopped):
        ng.finetune(network(), loader(), **SETTINGS, checkpoint=file, on_epoch=stopping(2))
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="run could not be written: "):
            ng.finetune(network(), loader(), **SETTINGS, checkpoint=file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert file.read_bytes() == before


def test_half_written_files_of_killed_trainings_are_removed(tmp_path):
    (tmp_path / f".run.4711{PART}").write_bytes(b"half")
    ng.finetune(network(), loader(), epochs=1, checkpoint=tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_batches_are_checked_as_ever(tmp_path):
    with pytest.raises(InputError, match="epoch 1, batch 0 has no labels"):
        ng.finetune(network(), [torch.zeros(2, 2)], checkpoint=tmp_path / "run")


PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
import neurograft as ng
from tests.training.test_resuming import loader, network

tuned = ng.finetune(
    network(), loader(), epochs=40, lr=0.1, momentum=0.9, schedule="cosine", validation=loader(), checkpoint=sys.argv[1]
)
torch.save(tuned.state_dict(), sys.argv[1] + ".result")
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    def start(name):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / name), str(Path(__file__).parents[2])]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    with start("undisturbed") as process:
        assert process.wait() == 0, process.stderr.read()
    chance, kills, file = random.Random(1), 0, tmp_path / "killed"
    ended = False
    while not ended:
        seen = file.stat().st_mtime_ns if file.exists() else 0
        with start("killed") as process:
            while process.poll() is None and (not file.exists() or file.stat().st_mtime_ns == seen):
                time.sleep(0.001)  # until it has gone on by an epoch, so that this test ends
            time.sleep(chance.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
            ended = process.wait() == 0
            assert ended or process.returncode == -signal.SIGKILL, process.stderr.read()
        kills += not ended
    assert kills >= 3
    expected, result = (torch.load(tmp_path / f"{name}.result") for name in ("undisturbed", "killed"))
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    assert not list(tmp_path.glob(f"*{PART}"))
