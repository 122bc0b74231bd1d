import json

import pytest
import torch

from neurograft.checkpoints import load_into, open_checkpoint, provenance_of, write_checkpoint
from neurograft.checkpoints.writing import size_text
from neurograft.command_line.streaming import parse_dtype, parse_size
from neurograft.errors import OptionError
from neurograft_experiments.networks import digits_mlp

MLP = "neurograft_experiments.networks:digits_mlp"
SHAPE = ("--input", "1x1x8x8")


@pytest.fixture
def members(tmp_path):
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        paths.append(tmp_path / f"member-{seed}.safetensors")
        write_checkpoint(digits_mlp(), paths[-1], {})
    return paths


def test_sizes():
    assert [parse_size(text, "--x") for text in ("4GB", "1.5 gib", "10", "3MB")] == [
        4 * 10**9,
        3 * 2**29,
        10,
        3 * 10**6,
    ]
    for text in ("4 bananas", "GB", "-1GB", ""):
        with pytest.raises(OptionError, match="--x .* is no size; write 4GB"):
            parse_size(text, "--x")
    for text in ("9" * 400, f"{'9' * 400}TB", "9223372036854775808", "0", "0.0001", "0GB"):
        with pytest.raises(OptionError, match="--x .* is no size that a machine has"):
            parse_size(text, "--x")
    with pytest.raises(OptionError, match="--dtype 'bflaot16' is not known; did you mean 'bfloat16'"):
        parse_dtype("bflaot16")


def test_streamed_and_in_memory_are_the_same(neurograft, members, tmp_path):
    code, _, err = neurograft("fuse", MLP, *members, *SHAPE, "-o", tmp_path / "memory.safetensors")
    assert (code, err) == (0, "")
    streamed = tmp_path / "streamed.safetensors"
    code, out, err = neurograft("fuse", MLP, *members, *SHAPE, "-o", streamed, "--max-memory", "1GB")
    assert (code, err) == (0, "")
    assert f"wrote {streamed}: {size_text(sum(x.nbytes for x in digits_mlp().state_dict().values()))} in" in out
    first, second = (load_into(digits_mlp(), path) for path in (tmp_path / "memory.safetensors", streamed))
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    assert provenance_of(streamed) == {
        name: value
        for name, value in provenance_of(tmp_path / "memory.safetensors").items()
        if name not in ("calibration", "recovery", "statistics")
    }


def test_folder_of_shards_in_another_dtype(neurograft, members, tmp_path):
    output = tmp_path / "out"
    code, _, err = neurograft(
        "fuse",
        MLP,
        *members,
        *SHAPE,
        "-o",
        output,
        "--dtype",
        "bfloat16",
        "--shard-size",
        "5KB",
        "--method",
        "average",
    )
    assert (code, err) == (0, "")
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert {tensor.dtype for tensor in open_checkpoint(output).tensors.values()} == {torch.bfloat16}
    code, _, err = neurograft("fuse", MLP, *members, *SHAPE, "-o", output)
    assert code == 2
    assert "out exists and is not empty" in err


def test_plan_shows_what_would_happen_and_saves_it(neurograft, members, tmp_path):
    code, out, err = neurograft("plan", MLP, *members, *SHAPE)
    assert (code, err) == (0, "")
    for text in (
        "hidden.1.weight:0",
        "transplant of 2 members",
        "tensors made of the members' neurons",
        "MB of memory",
    ):
        assert text in out
    saved = tmp_path / "plan.safetensors"
    code, out, err = neurograft("plan", MLP, *members, *SHAPE, "-o", saved, "--option", "order=joint")
    assert (code, err) == (0, "")
    assert f"wrote {saved}" in out
    output = tmp_path / "fused.safetensors"
    code, _, err = neurograft("fuse", MLP, *members, *SHAPE, "-o", output, "--plan", saved)
    assert (code, err) == (0, "")
    assert provenance_of(output)["options"] == {"order": "joint"}
    write_checkpoint(digits_mlp(), members[0], {})
    code, _, err = neurograft("fuse", MLP, *members, *SHAPE, "-o", output, "--force", "--plan", saved)
    assert code == 2
    assert "but the plan was made for" in err


def test_a_saved_symmetric_plan_streams_what_fusing_in_memory_gives(neurograft, members, tmp_path):
    saved, streamed, loaded = (tmp_path / f"{name}.safetensors" for name in ("plan", "streamed", "loaded"))
    common = (MLP, *members, *SHAPE, "--method", "symmetric")
    assert neurograft("plan", *common, "-o", saved)[0] == 0
    assert neurograft("fuse", MLP, *members, *SHAPE, "--plan", saved, "-o", streamed)[0] == 0
    assert neurograft("fuse", *common, "-o", loaded)[0] == 0
    one, other = (open_checkpoint(path).tensors for path in (streamed, loaded))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert provenance_of(streamed)["method"] == "symmetric"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-memory", "much"], "--max-memory 'much' is no size"),
        (["--max-memory", "1GB", "--calibration", "digits"], "leave out --calibration"),
        (["--max-memory", "1GB", "--method", "zip"], "zip"),
        (["--plan", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (
            ["--plan", "nowhere.safetensors", "--weights", "1,2"],
            "a saved plan has decided on the method and all it takes; leave out --weights",
        ),
        (
            ["--plan", "p.safetensors", "--method", "average", "--option", "order=joint", "--fixed", "*"],
            "leave out --method and --option and --fixed",
        ),
    ],
    ids=["size", "calibration", "activations", "no plan", "plan and weights", "plan and others"],
)
def test_wrong_requests_end_with_one_message(neurograft, members, tmp_path, arguments, message):
    code, out, err = neurograft("fuse", MLP, *members, *SHAPE, "-o", tmp_path / "out.safetensors", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert not list(tmp_path.glob("*out*"))


def test_a_folder_is_not_named_like_a_file(neurograft, members, tmp_path):
    code, _, err = neurograft("fuse", MLP, *members, *SHAPE, "-o", tmp_path / "out.pt")
    assert code == 2
    assert "ends in .pt: the result is a .safetensors file, or a folder" in err
    assert not (tmp_path / "out.pt").exists()
    code, _, err = neurograft("fuse", MLP, *members, *SHAPE, "-o", tmp_path / "net-3.1")
    assert (code, err) == (0, "")


def test_a_checkpoint_where_the_factory_must_stand(neurograft, members, tmp_path):
    code, _, err = neurograft("fuse", *members, *SHAPE, "-o", tmp_path / "out.safetensors")
    assert code == 2
    assert "member-0.safetensors is a checkpoint; name first how its network is built" in err


def test_model_folders_become_a_model_folder(neurograft, tmp_path):
    transformers = pytest.importorskip("transformers")
    folders = [tmp_path / "member-a", tmp_path / "member-b"]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=4, n_positions=32)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    code, out, err = neurograft("plan", *folders, "--method", "average")
    assert code == 0, err
    assert "GPT2LMHeadModel" in out
    assert "tensors averaged" in out
    code, _, err = neurograft("fuse", *folders, "--method", "average", "-o", tmp_path / "out", "--max-memory", "1GB")
    assert code == 0, err
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded(torch.ones(1, 3, dtype=torch.long)).logits.shape == (1, 3, 40)
