import pytest
import torch

from neurograft.command_line.arguments import (
    build,
    check_output,
    example_inputs,
    find_factory,
    parse_options,
    parse_weights,
)
from neurograft.errors import CheckpointError, InputError, OptionError

MLP = "neurograft_experiments.networks:digits_mlp"


def test_same_seed_same_network():
    first, again, other = build(MLP, 1), build(MLP, 1), build(MLP, 2)
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert not first.training


def test_shapes_become_inputs():
    image = example_inputs(["2x3x8x8"], MLP, 0)
    assert image.shape == (2, 3, 8, 8)
    assert image.dtype == torch.float32
    left, right = example_inputs(["2x3", "2x5:int64"], MLP, 0)
    assert (left.shape, right.shape, right.dtype) == ((2, 3), (2, 5), torch.int64)
    named = example_inputs(["input_ids=1x4:int64", "mask=1x4:bool"], MLP, 0)
    assert {name: (tuple(x.shape), x.dtype) for name, x in named.items()} == {
        "input_ids": ((1, 4), torch.int64),
        "mask": ((1, 4), torch.bool),
    }


def test_inputs_beside_the_factory(tmp_path, monkeypatch):
    (tmp_path / "mynets.py").write_text("import torch\ndef example_inputs():\n    return torch.ones(2, 7)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    assert example_inputs([], "mynets:net", 0).shape == (2, 7)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (["3,4"], "'3,4' is no shape; write 1x3x32x32"),
        (["1x3:flaot32"], "unknown dtype 'flaot32'; did you mean 'float32'"),
        (["a=1x3", "1x4"], "either every --input has a name"),
        ([], r"no example inputs: give --input SHAPE"),
    ],
    ids=["no shape", "dtype", "mixed", "none"],
)
def test_bad_inputs(shapes, message):
    with pytest.raises(InputError, match=message):
        example_inputs(shapes, MLP, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digits_mlp", "must read package.module:function"),
        ("neurograft.nowhere:net", "neurograft.nowhere cannot be imported"),
        ("neurograft_experiments.networks:digits_mpl", "has no 'digits_mpl'; did you mean 'digits_mlp'"),
        ("neurograft_experiments.networks:DEMONSTRATED", "is a dict, not a function"),
    ],
    ids=["no colon", "no module", "no function", "not callable"],
)
def test_bad_factory(text, message):
    with pytest.raises(InputError, match=message):
        find_factory(text)


def test_factory_that_fails_or_gives_no_network():
    with pytest.raises(InputError, match="factory 'neurograft_experiments.networks:MLP' failed: TypeError"):
        build("neurograft_experiments.networks:MLP", 0)
    with pytest.raises(InputError, match="gave a dict, not a torch.nn.Module"):
        build("builtins:dict", 0)


def test_options_and_weights():
    assert parse_options(["max-memory=3", "balance=true", "strategy=flat"]) == {
        "max_memory": 3,
        "balance": True,
        "strategy": "flat",
    }
    assert parse_options(["quota=0.9,0.1", 'width={"a*": 3}', "balance=False", "exclude=a,b"]) == {
        "quota": [0.9, 0.1],
        "width": {"a*": 3},
        "balance": False,
        "exclude": "a,b",
    }
    assert parse_weights("0.7,0.3") == [0.7, 0.3]
    assert parse_weights(None) is None
    with pytest.raises(OptionError, match="'order' must read name=value"):
        parse_options(["order"])
    with pytest.raises(OptionError, match="'a,b' must be numbers"):
        parse_weights("a,b")


def test_output_is_checked_first(tmp_path):
    with pytest.raises(CheckpointError, match="must end in .safetensors"):
        check_output(tmp_path / "a.pt", force=False)
    with pytest.raises(CheckpointError, match="the folder .*missing does not exist"):
        check_output(tmp_path / "missing" / "a.safetensors", force=False)
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(CheckpointError, match="exists; give --force"):
        check_output(tmp_path / "a.safetensors", force=False)
    check_output(tmp_path / "a.safetensors", force=True)
