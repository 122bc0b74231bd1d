"""Streaming from files gives bit for bit what `apply` gives in memory, and nothing at all if anything goes wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.attention import FORMS, attention, sequences
from tests.networks import NETWORKS, build, example
from tests.planting import planted
from torch import nn

import neurograft as ng
from neurograft.applying import formula
from neurograft.applying.provenance import Provenance
from neurograft.applying.stored import fuse_stored, open_files
from neurograft.applying.streaming import stream
from neurograft.axes.maps import PerUnit
from neurograft.checkpoints import load_into, open_checkpoint, provenance_of, sha256, write_checkpoint
from neurograft.errors import BadWeights, CheckpointError, MembersDiffer, OptionError, PlanError
from neurograft.members.members import Members
from neurograft.members.stored import stored_member
from neurograft.plans.saving import SavedPlan, load_plan, save_plan


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()


INPUTS = torch.zeros(2, 4)


@pytest.fixture
def files(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path in paths:
        write_checkpoint(mlp(), path, {})
    return paths


def opened(files: list[Path]) -> Members:
    return open_files(files, mlp, "tests:mlp", INPUTS)


def fused(stored: Members, output: Path, method: str = "average", **how):
    plan = ng.plan(stored, method=method, **how.pop("options", {}))
    return fuse_stored(stored, SavedPlan(plan, stored.name), output, **how)


@pytest.mark.parametrize("method", ["average", "transplant"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "weight_norm"])
def test_streamed_is_applied(tmp_path, monkeypatch, name, dtype, method):
    graph = ng.trace(build(name), example(name), verify=False)
    fixed = graph.unreached
    models = [build(name, seed).to(dtype) for seed in range(3)]
    for m, model in enumerate(models):
        write_checkpoint(model, tmp_path / f"{m}.safetensors", {})
    stored = [stored_member(open_checkpoint(tmp_path / f"{m}.safetensors"), model) for m, model in enumerate(models)]
    members = Members.on_disk(stored, models, example(name), name, fixed=fixed).changed(graphs=(graph,) * 3)
    plan = ng.plan(members, method=method)
    expected = ng.apply(plan, models).state_dict()
    monkeypatch.setattr(formula, "BLOCK", 50)  # many blocks even in small tensors
    provenance = Provenance.of(plan, [member.checkpoint for member in stored], name)
    stream(plan, members, tmp_path / "out", provenance, shard_size=5000)
    found = open_checkpoint(tmp_path / "out").tensors
    assert set(found) == set(stored[0].stored)
    for tensor_name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[tensor_name], rtol=0, atol=0)
    stored_member(open_checkpoint(tmp_path / "out"), build(name))  # nothing is missing


@pytest.mark.parametrize("form", FORMS)
def test_orders_of_their_own_in_every_head_stream_too(tmp_path, monkeypatch, form):
    net, x = attention(form, 4), sequences()
    graph = ng.trace(net, x)
    models = [net, planted(net, graph, 1, apart=True)]
    for m, model in enumerate(models):
        write_checkpoint(model, tmp_path / f"{m}.safetensors", {})
    stored = [stored_member(open_checkpoint(tmp_path / f"{m}.safetensors"), model) for m, model in enumerate(models)]
    members = Members.on_disk(stored, models, x, form).changed(graphs=(graph,) * 2)
    plan = ng.plan(members, method="permutation", restarts=1)
    assert any(isinstance(found.merge, PerUnit) for maps in plan.maps.values() for found in maps)
    save_plan(SavedPlan(plan), tmp_path / "plan.safetensors")
    monkeypatch.setattr(formula, "BLOCK", 50)
    provenance = Provenance.of(plan, [member.checkpoint for member in stored], form)
    stream(load_plan(tmp_path / "plan.safetensors").plan, members, tmp_path / "out", provenance)
    fused = load_into(attention(form, 4), tmp_path / "out")
    torch.testing.assert_close(dict(fused.state_dict()), dict(net.state_dict()), rtol=0, atol=1e-6)
    torch.testing.assert_close(fused.state_dict(), ng.apply(plan, models).state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("method", ["permutation", "optimal_transport"])
def test_methods_that_align_stream_too(tmp_path, files, method):
    networks = [load_into(mlp(), file) for file in files]
    expected = ng.apply(ng.plan(networks, INPUTS, method), networks)
    fused(opened(files), tmp_path / "out.safetensors", method)
    found = load_file(tmp_path / "out.safetensors")
    torch.testing.assert_close(found, dict(expected.state_dict()), rtol=0, atol=0)


def test_parametrised_networks_are_refused(files):
    with pytest.raises(CheckpointError, match="WeightNormed has parametrised weights .* fuse it in memory"):
        stored_member(open_checkpoint(files[0]), build("weight_norm"))


def test_provenance_has_the_members_hashes(tmp_path, files):
    done = fused(opened(files), tmp_path / "out.safetensors", "transplant", options={"order": "joint"})
    record = provenance_of(tmp_path / "out.safetensors")
    assert record["method"] == "transplant"
    assert record["options"] == {"order": "joint"}
    assert record["network"] == "tests:mlp"
    assert [member["sha256"] for member in record["members"]] == [{file.name: sha256(file)} for file in files]
    assert dict(done.hashes) == {file: sha256(file) for file in files}
    assert done.bytes_read == 3 * done.bytes_written


def test_dtype_and_progress(tmp_path, files):
    seen = []
    done = fused(
        opened(files), tmp_path / "out.safetensors", dtype=torch.float16, progress=lambda *bytes_: seen.append(bytes_)
    )
    assert seen[-1] == (done.bytes_read, done.bytes_read)
    assert seen == sorted(seen)
    dtypes = {name: tensor.dtype for name, tensor in load_file(tmp_path / "out.safetensors").items()}
    assert dtypes.pop("1.num_batches_tracked") == torch.int64
    assert set(dtypes.values()) == {torch.float16}


def test_numbers_that_a_dtype_cannot_hold(tmp_path, files):
    for file in files:
        save_file(load_file(file) | {"0.weight": torch.full((8, 4), 1e6)}, file)
    with pytest.raises(CheckpointError, match=r"0.weight has entries up to 1e\+06, which torch.float16 cannot hold"):
        fused(opened(files), tmp_path / "out.safetensors", dtype=torch.float16)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("method", ["average", "transplant"])
def test_bad_numbers_are_found_on_the_way(tmp_path, files, method):
    tensors = load_file(files[1])
    tensors["0.weight"][2, 1] = float("nan")
    save_file(tensors, files[1])
    with pytest.raises(BadWeights, match=r"0.weight of .*1.safetensors holds 1 NaN or infinite of 32 entries"):
        fused(opened(files), tmp_path / "out", method)
    assert not list(tmp_path.glob("*out*"))


def test_large_half_numbers_are_no_bad_numbers(tmp_path, files):
    for file in files:
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in load_file(file).items()}
        save_file(tensors | {"0.weight": torch.full((8, 4), 60000.0).half()}, file)
    fused(opened(files), tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors")["0.weight"].eq(60000).all()


def test_quantised_weights_are_refused(tmp_path):
    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("codes", torch.randint(0, 9, (4, 4)))

        def forward(self, x):
            return self.fc(x)

    for name in "ab":
        write_checkpoint(Quantised(), tmp_path / f"{name}.safetensors", {})
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    with pytest.raises(MembersDiffer, match="codes holds torch.int64 that differ between .* must be dequantised first"):
        fused(open_files(paths, Quantised, "q", INPUTS), tmp_path / "out")


def test_a_member_that_changes_under_way(tmp_path, files):
    stored = opened(files)

    def meddle(done, total):
        if done == total:
            os.utime(files[2], ns=(1, 1))

    with pytest.raises(
        CheckpointError, match=r"2.safetensors changed on the disk while it was read; nothing was written"
    ):
        fused(stored, tmp_path / "out", progress=meddle)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("left", [0, 5000])
def test_a_member_that_is_cut_under_way(tmp_path, monkeypatch, left):
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path in paths:
        write_checkpoint(nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300)), path, {})
    monkeypatch.setattr(formula, "BLOCK", 3000)
    stored = open_files(paths, lambda: nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 300)), "", torch.zeros(1, 300))

    def cut(done: int, total: int) -> None:
        if done > total // 2:
            os.truncate(paths[1], left)

    with pytest.raises(CheckpointError, match=rf"1.safetensors changed from \d+ to {left} bytes while it was read"):
        fused(stored, tmp_path / "out.safetensors", progress=cut)
    assert sorted(tmp_path.iterdir()) == paths


def test_a_saved_plan_is_only_for_its_members(tmp_path, files):
    stored = opened(files)
    save_plan(
        SavedPlan(ng.plan(stored), stored.name, (), stored.hashes()),
        tmp_path / "plan.safetensors",
    )
    saved = load_plan(tmp_path / "plan.safetensors")
    fuse_stored(stored, saved, tmp_path / "out.safetensors")
    fused(stored, tmp_path / "direct.safetensors", "transplant")
    torch.testing.assert_close(
        load_file(tmp_path / "out.safetensors"), load_file(tmp_path / "direct.safetensors"), rtol=0, atol=0
    )
    write_checkpoint(mlp(), files[0], {})
    with pytest.raises(
        CheckpointError, match=r"0.safetensors has the SHA-256 hash .*, but the plan was made for .*; plan again"
    ):
        fuse_stored(opened(files), saved, tmp_path / "other")
    assert not list(tmp_path.glob("*other*"))
    with pytest.raises(PlanError, match="made for 3 members, got 2"):
        fuse_stored(opened(files[1:]), saved, tmp_path / "other")
    with pytest.raises(PlanError, match="the plan was made for tests:mlp, these members are tests:other"):
        fuse_stored(open_files(files, mlp, "tests:other", INPUTS), saved, tmp_path / "other")


def test_outputs_that_cannot_be(tmp_path, files, monkeypatch):
    stored = opened(files)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(CheckpointError, match="full exists and is not empty"):
        fused(stored, tmp_path / "full")
    with pytest.raises(CheckpointError, match="the folder .*nowhere does not exist"):
        fused(stored, tmp_path / "nowhere" / "out")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5})())
    with pytest.raises(CheckpointError, match="out needs 404 B, but only 5 B of the disk are free"):
        fused(stored, tmp_path / "out")


def test_soft_maps_that_need_more_than_the_limit(tmp_path, files):
    with pytest.raises(OptionError, match=r"weight needs .* MB at once, because soft maps mix.* max_memory is 1 KB"):
        fused(opened(files), tmp_path / "out", "optimal_transport", options={"reg": 0.1}, max_memory=1000)


def test_members_that_do_not_fit(tmp_path, files):
    tensors = load_file(files[1])
    save_file({name: t for name, t in tensors.items() if name != "3.bias"}, files[1])
    with pytest.raises(CheckpointError, match=r"1.safetensors lacks '3.bias' that Sequential has"):
        opened(files)
    save_file(tensors | {"3.bais": torch.zeros(3)}, files[1])
    with pytest.raises(CheckpointError, match=r"1.safetensors holds '3.bais' that Sequential does not have"):
        opened(files)
    save_file(tensors | {"3.bias": torch.zeros(4)}, files[1])
    with pytest.raises(CheckpointError, match=r"3.bias has shape \(4,\), but Sequential expects \(3,\)"):
        opened(files)
    with pytest.raises(PlanError, match="at least two members, got 1"):
        opened(files[:1])


def test_killed_while_writing_leaves_no_result(tmp_path, files):
    code = f"""
import os, signal
from pathlib import Path
import torch
from neurograft.applying.stored import fuse_stored, open_files
import neurograft as ng
from neurograft.plans.saving import SavedPlan
from tests.applying.test_streaming import mlp, INPUTS
stored = open_files([Path(p) for p in {[str(f) for f in files]!r}], mlp, "x", INPUTS)
def kill(done, total):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
fuse_stored(stored, SavedPlan(ng.plan(stored, method="average")), Path({str(tmp_path / "out")!r}), progress=kill)
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2])
    assert ended.returncode == -9
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.glob(".out.*"))) == 1
    fused(opened(files), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name[0].isdigit()) == ["out"]
