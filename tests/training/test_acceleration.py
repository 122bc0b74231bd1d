import os
import sys

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import neurograft as ng
from neurograft.errors import MissingExtra, OptionError


def network():
    return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))


def batches():
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    return [(x, (x.norm(dim=1) > 1.2).long())]


class Watched(nn.Module):
    """Notes the dtype that its layer computes in."""

    def __init__(self):
        super().__init__()
        self.layers, self.dtypes = network(), []

    def forward(self, x):
        hidden = self.layers[0](x)
        self.dtypes.append(hidden.dtype)
        return self.layers[1:](hidden)


def test_bf16_computes_in_16_bits_and_learns():
    model = Watched()
    tuned = ng.finetune(model, batches(), epochs=100, lr=0.3, precision="bf16")
    assert set(tuned.dtypes) == {torch.bfloat16}
    assert {p.dtype for p in tuned.parameters()} == {torch.float32}
    assert ng.evaluate(tuned, batches()).accuracy > 0.9 > ng.evaluate(model, batches()).accuracy
    assert vars(tuned).keys() == vars(model).keys()  # nothing of Accelerate's stays on the network


def test_bf16_is_near_float32():
    model = network()
    exact, mixed = (ng.finetune(model, batches(), epochs=1, precision=p) for p in ("float32", "bf16"))
    torch.testing.assert_close(mixed.state_dict(), exact.state_dict(), rtol=1e-2, atol=1e-3)
    assert not torch.equal(mixed[0].weight, exact[0].weight)


def test_teachers_answer_in_the_same_precision():
    teacher, dtypes = network(), []
    teacher[0].register_forward_hook(lambda *given: dtypes.append(given[-1].dtype))
    taught = ng.distill(network(), [teacher], batches(), epochs=1, precision="bf16")
    assert set(dtypes) == {torch.bfloat16}
    assert taught[0].weight.dtype == torch.float32


def test_fp16_needs_a_gpu():
    with pytest.raises(OptionError, match="precision='fp16' needs a GPU"):
        ng.finetune(network(), batches(), precision="fp16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(OptionError, match="device='cuda': torch finds no GPU on this machine"):
        ng.finetune(network(), batches(), device="cuda")


def test_one_precision_after_the_other_leaves_no_trace():
    environment = dict(os.environ)
    for precision in ("bf16", "float32", "bf16"):
        ng.finetune(network(), batches(), epochs=1, precision=precision)
    assert dict(os.environ) == environment


def test_several_processes_need_the_extra(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtra, match=r"several processes need accelerate: pip install 'neurograft\[train\]'"):
        ng.finetune(network(), batches())


def test_a_program_that_uses_accelerate_itself_keeps_its_own():
    own = Accelerator(cpu=True, mixed_precision="bf16")
    ng.finetune(network(), batches(), epochs=1)
    assert own.mixed_precision == "bf16"
    assert own.device == torch.device("cpu")


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_launchers_that_shard_are_refused(name, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(OptionError, match=f"ACCELERATE_USE_{name} is set, but training copies the network"):
        ng.finetune(network(), batches())


def test_curves_for_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history, x = [], batches()
    ng.finetune(
        network(), x, epochs=3, validation=x, schedule="halve:1", tracker=tmp_path / "run", on_epoch=history.append
    )
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    curves = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert curves["accuracy/validation"] == [(e.number, pytest.approx(e.validation.accuracy)) for e in history]
    assert curves["loss/training"] == [(e.number, pytest.approx(e.train_loss)) for e in history[1:]]
    assert curves["learning rate"] == [(n, pytest.approx(0.01 * 0.5**n)) for n in range(4)]


def test_a_tracker_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="tracker=.*file/run' cannot be written to: Not a directory"):
        ng.finetune(network(), batches(), tracker=tmp_path / "file" / "run")
