import sys
from pathlib import Path

import pytest
import torch

from neurograft.command_line.arguments import (
    build,
    check_folder,
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
        (["1x3\n"], "is no shape"),
        (["1x99999999999999999999999"], "is no shape"),
        (["1x١"], "is no shape"),
        (["100000x1000x1000x8"], r"has 8e\+11 entries: a small example is all that is needed"),
        (["1x3:flaot32"], "unknown dtype 'flaot32'; did you mean 'float32'"),
        (["a=1x3", "1x4"], "either every --input has a name"),
        ([], r"no example inputs: give --input SHAPE"),
    ],
    ids=["no shape", "line", "digits", "other digits", "huge", "dtype", "mixed", "none"],
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


def test_links_and_folders_where_a_file_shall_be(tmp_path):
    (tmp_path / "link.safetensors").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match="link.safetensors exists; give --force"):
        check_output(tmp_path / "link.safetensors", force=False)
    check_output(tmp_path / "link.safetensors", force=True)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="folder.safetensors is a folder; give the file's name in it"):
        check_output(tmp_path / "folder.safetensors", force=True)
    with pytest.raises(CheckpointError, match="File name too long"):
        check_output(tmp_path / f"{'n' * 300}.safetensors", force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.safetensors", "link.safetensors"]


def test_folders_are_checked_first(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "dangling").symlink_to("nowhere")
    check_folder(tmp_path / "empty")
    check_folder(tmp_path / "link")
    with pytest.raises(CheckpointError, match="dangling is a link that leads to nowhere"):
        check_folder(tmp_path / "dangling")
    with pytest.raises(CheckpointError, match="File name too long"):
        check_folder(tmp_path / ("n" * 300))
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="is the current folder, which cannot be replaced"):
        check_folder(Path())


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 10**30])
def test_seeds_that_no_generator_takes(seed):
    for use in (lambda: build(MLP, seed), lambda: example_inputs(["1x2"], MLP, seed)):
        with pytest.raises(OptionError, match=f"--seed is a whole number from 0 to 2.63 - 1, got {seed}"):
            use()
    build(MLP, 2**63 - 1)


def test_options_that_are_no_json():
    deep, digits = "[" * 100_000, "9" * 5000
    assert parse_options([f"a={deep}", f"b={digits}"]) == {"a": deep, "b": digits}


def test_modules_that_fail(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "failing.py").write_text("def net(): pass\ndef example_inputs(): raise KeyError('x')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *sys.path])
    for text in ("broken:net", ".:x", "..a:b", "a..b:c", "\udcff:x", "n" * 1000 + ":x"):
        with pytest.raises(InputError, match="cannot be imported"):
            find_factory(text)
    with pytest.raises(InputError, match=r"example_inputs\(\) of failing failed: KeyError: 'x'"):
        example_inputs([], "failing:net", 0)
