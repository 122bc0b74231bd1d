import json
import os
import warnings

import pytest
import torch
from safetensors import safe_open
from torch import nn

import neurograft as ng
from neurograft import __version__
from neurograft.checkpoints import load_into, provenance_of, sha256, write_checkpoint
from neurograft_experiments.data import load_images
from neurograft_experiments.networks import digits_mlp

MLP = "neurograft_experiments.networks:digits_mlp"
SHAPE = ("--input", "1x1x8x8")


@pytest.fixture
def members(tmp_path):
    paths = []
    for seed in range(3):
        torch.manual_seed(seed)
        paths.append(tmp_path / f"member-{seed}.safetensors")
        write_checkpoint(digits_mlp(), paths[-1], {})
    return paths


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("member-"))


def test_version_and_help(neurograft):
    assert neurograft("--version") == (0, f"neurograft {__version__}\n", "")
    code, out, _ = neurograft("--help")
    assert code == 0
    for command in ("demo", "trace", "fuse", "evaluate"):
        assert command in out
        assert neurograft(command, "--help")[0] == 0


def test_trace_shows_the_groups(neurograft, members):
    code, out, err = neurograft("trace", MLP, members[0], *SHAPE)
    assert (code, err) == (0, "")
    for name in ("hidden.1.weight:0", "hidden.3.weight:0", "hidden.5.weight:0"):
        assert name in out
    assert "reads" not in out
    _, out, _ = neurograft("trace", MLP, members[0], *SHAPE, "--edges")
    assert "hidden.3.weight (addmm in hidden.3)  1 relu" in out


def test_fuse_writes_what_the_library_computes(neurograft, members, tmp_path):
    output = tmp_path / "fused.safetensors"
    code, out, err = neurograft(
        "fuse", MLP, *members, *SHAPE, "-o", output, "--weights", "0.5,0.3,0.2", "--option", "order=joint", "--seed", 3
    )
    assert (code, err) == (0, "")
    assert f"wrote {output}" in out
    networks = [load_into(digits_mlp().eval(), path) for path in members]
    expected = ng.fuse(networks, torch.randn(1, 1, 8, 8), "transplant", [0.5, 0.3, 0.2], order="joint", seed=3)
    torch.testing.assert_close(load_into(digits_mlp(), output).state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert left_behind(tmp_path) == ["fused.safetensors"]


def test_statistics_stand_for_data(neurograft, members, tmp_path):
    own = [tmp_path / f"own-{m}.safetensors" for m in range(2)]
    for member, path in zip(members, own, strict=False):
        code, out, err = neurograft("statistics", MLP, member, "digits", "-o", path)
        assert (code, err) == (0, "")
        assert "samples of 1x8x8 real numbers" in out
    output = tmp_path / "fused.safetensors"
    brought = [part for path in own for part in ("--statistics", path)]
    code, out, err = neurograft("fuse", MLP, *members[:2], *SHAPE, "-o", output, *brought)
    assert (code, err) == (0, "")
    assert "refit: 1000 samples" in out
    networks = [load_into(digits_mlp().eval(), path) for path in members[:2]]
    expected = ng.fuse(networks, torch.zeros(1, 1, 8, 8), statistics=[ng.Statistics.load(path) for path in own])
    torch.testing.assert_close(load_into(digits_mlp(), output).state_dict(), expected.state_dict())
    assert provenance_of(output)["statistics"] == [sha256(path) for path in own]


def test_statistics_with_noise(neurograft, members, tmp_path):
    path = tmp_path / "own.safetensors"
    code, out, _ = neurograft("statistics", MLP, members[0], "digits", "-o", path, "--noise", "3,1e-5", "--clip", "8")
    assert code == 0
    assert "noise (3, 1e-05)" in out
    assert ng.Statistics.load(path).noise == (3.0, 1e-5)
    code, _, err = neurograft("statistics", MLP, members[0], "digits", "-o", path, "--force", "--noise", "3")
    assert code == 2
    assert "must be two numbers" in err


def test_a_file_of_something_else_is_no_statistics(neurograft, members, tmp_path):
    output = tmp_path / "fused.safetensors"
    code, _, err = neurograft("fuse", MLP, *members[:2], *SHAPE, "-o", output, "--statistics", members[0])
    assert code == 2
    assert "holds no statistics" in err


def test_calibration_images_refit_the_fused_network(neurograft, members, tmp_path):
    refitted, bare = tmp_path / "refitted.safetensors", tmp_path / "bare.safetensors"
    code, out, err = neurograft("fuse", MLP, *members, *SHAPE, "-o", refitted, "--calibration", "digits")
    assert (code, err) == (0, "")
    assert "refit" in out
    assert provenance_of(refitted)["recovery"] == "refit"
    neurograft("fuse", MLP, *members, *SHAPE, "-o", bare, "--calibration", "digits", "--recover", "none")
    assert provenance_of(bare)["recovery"] is None
    networks = [load_into(digits_mlp().eval(), path) for path in members]
    images = load_images("digits").validation.images
    with torch.no_grad():
        wanted = ng.Ensemble(networks)(images)
        far, near = (float((load_into(digits_mlp().eval(), path)(images) - wanted).norm()) for path in (bare, refitted))
    assert near < far


def test_provenance_is_in_the_file(neurograft, members, tmp_path):
    output = tmp_path / "fused.safetensors"
    neurograft("fuse", MLP, *members[:2], *SHAPE, "-o", output, "--method", "average", "--seed", 7)
    with safe_open(output, framework="pt") as file:
        found = json.loads(file.metadata()["neurograft"])
    assert found["method"] == "average"
    assert found["options"] == {}
    assert found["seed"] == 7
    assert found["version"] == __version__
    assert found["weights"] == [0.5, 0.5]
    assert found["network"] == MLP
    assert found["members"] == [{"name": path.name, "sha256": {path.name: sha256(path)}} for path in members[:2]]


def test_same_command_same_bytes(neurograft, members, tmp_path):
    for name in "ab":
        neurograft("fuse", MLP, *members, *SHAPE, "-o", tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_pickled_members_and_a_factory_of_ones_own(neurograft, tmp_path, monkeypatch):
    (tmp_path / "shapes.py").write_text(
        "import torch\n"
        "def net():\n    return torch.nn.Sequential(torch.nn.Linear(3, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))\n"
        "def example_inputs():\n    return torch.randn(2, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        network = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
        torch.save(network.state_dict(), tmp_path / f"member-{name}.pt")
    code, _, err = neurograft("fuse", "shapes:net", "member-a.pt", "member-b.pt", "-o", "fused.safetensors")
    assert (code, err) == (0, "")
    assert (tmp_path / "fused.safetensors").is_file()


def test_evaluate_measures_checkpoints_and_their_ensemble(neurograft, members):
    code, out, err = neurograft("evaluate", MLP, *members, "--vote", "average", "--split", "test")
    assert (code, err) == (0, "")
    for words in ("digits, test", "member-0.safetensors", "ensemble (average)", "997"):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "transplnt"], "unknown method 'transplnt'; did you mean 'transplant'"),
        (["--option", "ordr=joint"], "method 'transplant' has no option 'ordr'; did you mean 'order'"),
        (["--option", "order=jiont"], "order='jiont'.*joint"),
        (["--option", "balance=yes"], "balance is True or False, got 'yes'"),
        (["--option", "quota=a,b,c"], "quota must be a list of numbers, one per member, got 'a,b,c'"),
        (["--method", "zip"], "needs calibration batches: pass calibration=.*on the command line --calibration"),
        (["--recover", "none "], "known: auto, batch_norm, refit, repair; for nothing None .on the command line: none"),
        (["--recover", "refti"], "unknown recover='refti'; did you mean 'refit'"),
        (["--recover", "refit"], "recover='refit' looks at activations"),
        (["--weights", "1,2"], "weights"),
        (["--weights", "a"], "--weights 'a' must be numbers"),
        (["--input", "8x8"], "."),
    ],
    ids=[
        "method",
        "option",
        "value",
        "switch",
        "list",
        "zip",
        "nothing",
        "recovery",
        "no data for it",
        "number of weights",
        "weights",
        "example inputs",
    ],
)
def test_wrong_requests_end_with_one_message(neurograft, members, tmp_path, arguments, message):
    import re

    output = tmp_path / "fused.safetensors"
    shape = [] if "--input" in arguments else SHAPE
    code, out, err = neurograft("fuse", MLP, *members, *shape, "-o", output, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert re.search(message, err)
    assert left_behind(tmp_path) == []


def spoil_nan(path):
    network = digits_mlp()
    nn.init.constant_(network.head.weight, torch.nan)
    write_checkpoint(network, path, {})


def spoil_shape(path):
    write_checkpoint(nn.Sequential(nn.Linear(2, 2)), path, {})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "member-1.safetensors"),
        (lambda path: path.write_bytes(b"rubbish"), "member-1.safetensors"),
        (lambda path: path.unlink(), "member-1.safetensors: no such file"),
        (spoil_nan, "member-1.safetensors holds "),
        (spoil_shape, "member-1.safetensors"),
    ],
    ids=["truncated", "rubbish", "missing", "nan", "another network"],
)
def test_spoilt_members_end_with_one_message(neurograft, members, tmp_path, spoil, message):
    spoil(members[1])
    code, out, err = neurograft("fuse", MLP, *members, *SHAPE, "-o", tmp_path / "fused.safetensors")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert left_behind(tmp_path) == []


def test_one_member_only(neurograft, members, tmp_path):
    code, _, err = neurograft("fuse", MLP, members[0], *SHAPE, "-o", tmp_path / "fused.safetensors")
    assert code == 2
    assert "at least two members, got 1" in err


def test_a_folder_where_the_factory_must_stand(neurograft, tmp_path):
    code, _, err = neurograft("trace", tmp_path)
    assert code == 2
    assert "must read package.module:function" in err
    assert "this is a file or folder of weights" in err


def test_evaluate_keeps_names_whole(neurograft, members, tmp_path, monkeypatch):
    long = tmp_path / "a-name-that-is-quite-long.safetensors"
    members[0].rename(long)
    (tmp_path / "other").mkdir()
    again = tmp_path / "other" / members[1].name
    again.write_bytes(members[1].read_bytes())
    code, out, err = neurograft("evaluate", MLP, long, members[2], columns=80)
    assert (code, err) == (0, "")
    assert long.name in out
    code, out, err = neurograft("evaluate", MLP, members[1], again, columns=400)
    assert (code, err) == (0, "")
    assert str(again) in out


def test_misspelt_flag_names_the_closest(neurograft, members):
    code, _, err = neurograft("fuse", MLP, *members, "--otput", "x.safetensors")
    assert code == 2
    assert "--output" in err


def test_demo_refuses_unknown_network_and_data(neurograft, tmp_path):
    code, _, err = neurograft("demo", "--network", "mpl", "--output", tmp_path / "demo")
    assert (code, err) == (2, "error: unknown network 'mpl'; did you mean 'mlp'? known: convnet, mlp\n")
    code, _, err = neurograft("demo", "--data", tmp_path / "nowhere", "--output", tmp_path / "demo")
    assert code == 2
    assert "no such folder" in err


@pytest.mark.parametrize(
    ("output", "arguments", "message"),
    [
        (".", ["--method", "average"], "is the current folder, which cannot be replaced; name a new folder in it"),
        ("", ["--method", "average"], "is the current folder"),
        (
            "x.safetensors",
            ["--seed", str(2**64)],
            "seed is a whole number from 0 to 2^63 - 1, got 18446744073709551616",
        ),
        ("x", ["--seed", str(2**64)], "seed is a whole number from 0 to 2^63 - 1"),
        ("x", ["--max-memory", f"{'9' * 400}TB"], "is no size that a machine has"),
        ("x.safetensors", ["--input", "1x1x8x99999999999999999999999"], "is no shape"),
        ("x.safetensors", ["--input", "100000x1000x1000x8"], "has 8e+11 entries"),
        ("link.safetensors", [], "link.safetensors exists; give --force to replace it"),
        ("to-file", [], "to-file is a link that leads to"),
        ("n" * 300 + ".safetensors", [], "File name too long"),
        ("n" * 300, [], "File name too long"),
        ("nowhere/x", [], "nowhere does not exist"),
    ],
    ids=[
        "here",
        "empty",
        "seed",
        "seed streamed",
        "memory",
        "digits",
        "input",
        "dangling",
        "to a file",
        "long",
        "long 2",
        "nowhere",
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    neurograft, members, tmp_path, monkeypatch, output, arguments, message
):
    place = tmp_path / "place"
    place.mkdir()
    if output.startswith(("link", "to")):
        (place / output).symlink_to("nowhere" if output.startswith("link") else members[0])
    monkeypatch.chdir(place)
    monkeypatch.setattr("neurograft.checkpoints.stored_tensor.Entry.read_into", None)  # nothing is read
    before = sorted(place.iterdir())
    shape = [] if "--input" in arguments else SHAPE
    code, out, err = neurograft("fuse", MLP, *members, *shape, "-o", output, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert sorted(place.iterdir()) == before


def test_a_link_to_an_empty_folder_is_written_into(neurograft, members, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    code, _, err = neurograft("fuse", MLP, *members, *SHAPE, "-o", tmp_path / "link", "--method", "average")
    assert (code, err) == (0, "")
    assert (tmp_path / "link").is_symlink()
    assert [file.name for file in (tmp_path / "real").iterdir()] == ["model.safetensors"]


def test_names_that_are_no_text(neurograft, members, tmp_path):
    odd = tmp_path / os.fsdecode(b"member-\xff\x1b[31m.safetensors")
    members[0].rename(odd)
    output = tmp_path / os.fsdecode(b"out-\xfe.safetensors")
    for streamed in ([], ["--max-memory", "1GB", "--force"]):
        code, out, err = neurograft("fuse", MLP, odd, members[1], *SHAPE, "-o", output, *streamed)
        assert (code, err) == (0, "")
        assert r"out-\udcfe.safetensors" in out
        assert provenance_of(output)["members"][0]["name"] == odd.name
    code, out, err = neurograft("evaluate", MLP, odd, members[1])
    assert (code, err) == (0, "")
    assert r"member-\udcff\x1b[31m.safetensors" in out
    odd.write_bytes(b"rubbish")
    code, out, err = neurograft("evaluate", MLP, odd)
    assert code == 2
    assert r"member-\udcff\x1b[31m.safetensors is no safetensors file" in err


def test_a_member_that_changes_while_it_is_fused(neurograft, members, tmp_path, monkeypatch):
    monkeypatch.setattr("neurograft.checkpoints.sha256", lambda path: (path.touch(), sha256(path))[1])
    code, _, err = neurograft("fuse", MLP, *members, *SHAPE, "-o", tmp_path / "out.safetensors")
    assert code == 2
    assert "changed on the disk while it was read; nothing was written" in err
    assert left_behind(tmp_path) == []


def test_what_was_taken_of_a_checkpoint_is_said_in_one_line(neurograft, members, tmp_path):
    states = [load_into(digits_mlp(), path).state_dict() for path in members]
    wrapped = tmp_path / "member-w.pt"
    torch.save({"model": {f"module.{k}": v for k, v in states[0].items()}, "ema": states[2], "epoch": 3}, wrapped)
    results = []
    for first in (members[0], wrapped, members[2], f"{wrapped}#ema"):
        for streamed in ([], ["--max-memory", "1GB"]):
            output = tmp_path / f"out-{len(results)}.safetensors"
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                code, _, err = neurograft("fuse", MLP, first, members[1], *SHAPE, "-o", output, *streamed)
            assert code == 0
            assert err.count("\n") == (1 if str(first).startswith(str(wrapped)) else 0)
            results.append(load_into(digits_mlp(), output).state_dict())
    for one, other in ((0, 1), (0, 2), (0, 3), (4, 5), (4, 6), (4, 7)):
        torch.testing.assert_close(results[one], results[other], rtol=0, atol=0)
    assert not torch.equal(results[0]["head.weight"], results[4]["head.weight"])
