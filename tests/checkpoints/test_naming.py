"""Checkpoints as people have them: the network is found in them, one line says what was taken, or they are refused."""

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

from neurograft.checkpoints import load_into, open_checkpoint
from neurograft.errors import CheckpointError
from neurograft.members.stored import stored_member


class Net(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU())
        self.head = nn.Linear(width, 2)


def net(seed: int = 0, width: int = 4) -> Net:
    torch.manual_seed(seed)
    made = Net(width)
    for tensor in made.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else torch.tensor(7))
    return made


def state(seed: int = 0, prefix: str = "") -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in net(seed).state_dict().items()}


def written(path: Path, content: dict) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)
    else:
        torch.save(content, path)
    return path


def same(found: nn.Module, expected: dict) -> None:
    torch.testing.assert_close(dict(found.state_dict()), expected, rtol=0, atol=0)


def taken(path: Path, model: nn.Module | None = None) -> tuple[nn.Module, str]:
    """The network that was read, and the one line that says what was taken."""
    with pytest.warns(UserWarning, match=r"^.*$") as told:
        found = load_into(net(9) if model is None else model, path)
    assert len(told) == 1
    line = str(told[0].message)
    assert "\n" not in line
    assert line.startswith(f"{path}: ")
    return found, line


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "net.",
        "module._orig_mod.",
        "model._orig_mod.module.",
        "some_network.of.mine.",
    ],
)
def test_prefixes_are_taken_off(tmp_path, prefix, suffix):
    found, line = taken(written(tmp_path / f"a.{suffix}", state(1, prefix)))
    same(found, state(1))
    if prefix != "_orig_mod.":
        assert "were taken" in line


def test_what_torch_itself_wraps(tmp_path):
    averaged = AveragedModel(net(1))
    for name, wrapped in {"dp": DataParallel(net(1)), "compiled": torch.compile(net(1)), "averaged": averaged}.items():
        found, line = taken(written(tmp_path / f"{name}.pt", wrapped.state_dict()))
        same(found, state(1))
    assert "they are an average of several steps (n_averaged)" in line
    inner = net(1)
    inner.body = torch.compile(inner.body)
    assert "body._orig_mod.0.weight" in inner.state_dict()
    found, line = taken(written(tmp_path / "inner.pt", inner.state_dict()))
    same(found, state(1))
    assert "wrappers inside of names were taken off" in line


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3, "arch": "net"},
        lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.zeros(4, 3)}}}},
        lambda s: {"model_state_dict": s, "loss": torch.tensor(1.0)},
        lambda s: {"net": s, "acc": 93.1},
        lambda s: {"model": s, "args": argparse.Namespace(lr=1)},
        lambda s: {"a": {"b": {"model": s}}},
    ],
)
def test_dicts_around_it(tmp_path, wrap):
    found, line = taken(written(tmp_path / "a.pt", wrap(state(1))))
    same(found, state(1))
    assert "/' were taken" in line
    found, _ = taken(written(tmp_path / "a.pt", wrap(state(1, "module."))))
    same(found, state(1))


def test_lightning(tmp_path):
    content = {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.5",
        "state_dict": state(1, "model.") | {"criterion.weight": torch.ones(2), "accuracy.total": torch.zeros(1)},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "path": Path("x")}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(4, 3)}}}],
        "hyper_parameters": argparse.Namespace(lr=0.1),
    }
    found, line = taken(written(tmp_path / "last.ckpt", content))
    same(found, state(1))
    assert line.endswith(
        "the tensors under 'state_dict/model.' were taken; left out: 'state_dict/criterion.weight' and 1 more tensor"
    )


@pytest.mark.parametrize("names", [("model", "ema"), ("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_of_a_network_and_its_average_the_network_is_taken(tmp_path, names):
    path = written(tmp_path / "a.pt", {names[0]: state(1), names[1]: state(2)})
    found, line = taken(path)
    same(found, state(1))
    assert f"a moving average is there too: a.pt#{names[1]} takes that" in line
    found, line = taken(Path(f"{path}#{names[1]}"))
    same(found, state(2))
    assert f"'{names[1]}/' were taken" in line


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_averages_in_one_dict(tmp_path, suffix):
    path = written(tmp_path / f"a.{suffix}", state(1, "model.") | state(2, "ema_model.module."))
    found, line = taken(path)
    same(found, state(1))
    assert f"a.{suffix}#ema_model.module takes that" in line
    for part in ("ema_model", "ema_model.module"):
        same(taken(Path(f"{path}#{part}"))[0], state(2))
    path = written(tmp_path / f"b.{suffix}", state(1) | state(2, "ema."))
    same(taken(path)[0], state(1))
    same(taken(Path(f"{path}#ema"))[0], state(2))


def test_an_average_alone_is_taken(tmp_path):
    same(taken(written(tmp_path / "a.pt", {"ema": state(2)}))[0], state(2))


def test_readings_that_differ_are_refused(tmp_path):
    path = written(tmp_path / "dino.pt", {"student": state(1), "teacher": state(2)})
    with pytest.raises(
        CheckpointError, match=r"dino.pt holds the network 2 times, with different numbers: .*such as dino.pt#teacher"
    ):
        load_into(net(9), path)
    same(taken(Path(f"{path}#student"))[0], state(1))
    written(path, {"model": state(1), "state_dict": state(1)})
    same(taken(path)[0], state(1))
    with pytest.raises(CheckpointError, match=r"holds no Net under 'nothing'; there are model, state_dict"):
        load_into(net(9), Path(f"{path}#nothing"))


def test_files_whose_names_hold_the_sign(tmp_path):
    path = written(tmp_path / "a#b.pt", state(1))
    same(load_into(net(9), path), state(1))
    written(tmp_path / "c#d.pt", {"model": state(1), "ema": state(2)})
    same(taken(tmp_path / "c#d.pt#ema")[0], state(2))
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(tmp_path / "e.pt#ema")


def test_counts_of_operations_are_passed_over(tmp_path):
    counts = {
        f"{where}total_{what}": torch.zeros(1) for where in ("", "body.0.", "head.") for what in ("ops", "params")
    }
    found, line = taken(written(tmp_path / "a.pt", state(1) | counts))
    same(found, state(1))
    assert line.endswith("left out: 'total_ops' and 5 more tensors")


def test_counters_that_are_not_there(tmp_path):
    old = {name: tensor for name, tensor in state(1).items() if not name.endswith("num_batches_tracked")}
    found, line = taken(written(tmp_path / "a.pt", old))
    same(found, state(1) | {"body.1.num_batches_tracked": torch.tensor(0)})
    assert line.endswith("not there and set to 0: 'body.1.num_batches_tracked'")


def test_a_larger_network_is_not_taken_for_a_part_of_it(tmp_path):
    larger = {"backbone.encoder." + name: tensor for name, tensor in state(1).items()} | {"neck.weight": torch.ones(2)}
    with pytest.raises(CheckpointError, match=r"holds 'neck.weight' that Net does not have"):
        load_into(net(9), written(tmp_path / "a.pt", larger))
    same(taken(Path(f"{tmp_path / 'a.pt'}#backbone.encoder"))[0], state(1))
    with pytest.raises(CheckpointError, match=r"holds 'more' that Net does not have"):
        load_into(net(9), written(tmp_path / "b.pt", state(1) | {"more": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"holds 'module.more' that Net does not have"):
        load_into(net(9), written(tmp_path / "c.pt", state(1, "module.") | {"module.more": torch.ones(1)}))
    layers = {
        f"{i}.{name}": torch.full(shape, i) for i in range(3) for name, shape in (("weight", (3, 3)), ("bias", (3,)))
    }
    with pytest.raises(CheckpointError, match=r"holds the network 3 times"):
        load_into(nn.Linear(3, 3), written(tmp_path / "d.pt", layers))


def test_what_is_wrong_is_said_of_the_reading_that_comes_closest(tmp_path):
    wrapped = state(1, "module.")
    del wrapped["module.head.bias"]
    with pytest.raises(CheckpointError, match=r"a.pt lacks 'head.bias' that Net has$"):
        load_into(net(9), written(tmp_path / "a.pt", wrapped))
    with pytest.raises(CheckpointError, match=r"module.body.0.weight has shape \(4, 3\), but Net expects \(5, 3\)"):
        load_into(net(9, width=5), written(tmp_path / "b.pt", state(1, "module.")))


def test_shapes_decide_between_readings(tmp_path):
    wide = {f"b.{name}": tensor for name, tensor in net(2, 6).state_dict().items()}
    path = written(tmp_path / "a.pt", {"x": state(1, "a.") | wide})
    same(taken(path)[0], state(1))
    same(taken(path, net(9, 6))[0], net(2, 6).state_dict())


def test_streamed_members_are_found_alike(tmp_path):
    path = written(tmp_path / "a.pt", {"model": state(1, "module."), "ema": state(2)})
    with torch.device("meta"):
        network = Net()
    with pytest.warns(UserWarning, match="'model/module.' were taken"):
        member = stored_member(open_checkpoint(path), network)
    torch.testing.assert_close(dict(member.state), state(1), rtol=0, atol=0)
    assert list(member.in_reading_order()) == list(state(1))
    old = {name: tensor for name, tensor in state(1).items() if not name.endswith("num_batches_tracked")}
    with pytest.warns(UserWarning, match="not there and set to 0"):
        member = stored_member(open_checkpoint(written(tmp_path / "b.pt", old)), network)
    assert member.state["body.1.num_batches_tracked"].item() == 0


def test_networks_that_are_wrapped_themselves(tmp_path):
    for prefix, wrap in {"_orig_mod.": torch.compile, "module.": DataParallel}.items():
        same(load_into(wrap(net(9)), written(tmp_path / "a.pt", state(1))), state(1, prefix))
        same(load_into(wrap(net(9)), written(tmp_path / "b.pt", state(1, prefix))), state(1, prefix))
        same(taken(written(tmp_path / "c.pt", state(1, "model.")), wrap(net(9)))[0], state(1, prefix))
