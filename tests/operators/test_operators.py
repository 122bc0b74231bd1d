"""Members in one basis are combined by an operator: the sum, or any other, in memory and from files alike."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.networks import build, example
from tests.planting import planted
from torch import Tensor, nn

import neurograft as ng
from neurograft.applying import formula
from neurograft.applying.formula import FusedRows
from neurograft.applying.stored import fuse_stored, open_files
from neurograft.checkpoints import provenance_of, sha256, write_checkpoint
from neurograft.checkpoints.stored_tensor import Entry
from neurograft.errors import BadWeights, CheckpointError, MembersDiffer, OptionError, PlanError
from neurograft.operators import OPERATORS
from neurograft.operators.block import Block
from neurograft.operators.operator import Operator
from neurograft.operators.owned import Owned
from neurograft.plans.saving import SavedPlan, load_plan, save_plan


@dataclass(frozen=True)
class Median(Operator):
    """The middle of the members' entries."""

    name = "median"

    def combine(self, block: Block) -> Tensor:
        return torch.stack(list(block.members)).median(0).values


@dataclass(frozen=True)
class SignVote(Operator):
    """Of what members changed since their ancestor, the mean of those changes whose sign has the majority."""

    name = "sign_vote"
    needs_base = True
    scale: float = 1.0

    def combine(self, block: Block) -> Tensor:
        changes = torch.stack(block.changes)
        kept = changes.sign() == changes.sum(0).sign()
        return block.ancestor + self.scale * (changes * kept).sum(0) / kept.sum(0).clamp_min(1)


@dataclass(frozen=True)
class OfOneLength(Operator):
    """The mean of members that are brought to one length before; needs whole tensors."""

    name = "of_one_length"
    whole = True

    def combine(self, block: Block) -> Tensor:
        lengths = [float(member.norm()) or 1.0 for member in block.members]
        mean = sum(lengths) / len(lengths)
        both = zip(block.members, lengths, strict=True)
        return sum((member * (mean / length) for member, length in both), torch.tensor(0.0))


NAMES = ["mlp_bias", "vgg_batch_norm", "resnet", "attention"]


def children(name: str, count: int = 3) -> tuple[nn.Module, list[nn.Module]]:
    """An ancestor and networks that were changed a little from it."""
    base, found = build(name), []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        child = copy.deepcopy(base)
        with torch.no_grad():
            for parameter in child.parameters():
                parameter.add_(0.2 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator))
        found.append(child)
    return base, found


def expected(operator: Operator, models: list[nn.Module], base: nn.Module) -> dict[str, Tensor]:
    """The operator on the networks' floating tensors as they are; running statistics are no weights but averaged."""
    states = [model.state_dict() for model in models]
    return {
        name: (
            torch.stack([state[name] for state in states]).mean(0)
            if "running" in name
            else operator.combine(Block(name, [state[name] for state in states], (), own))
        )
        for name, own in base.state_dict().items()
        if own.is_floating_point()
    }


OPERATORS_HERE = [Median(), SignVote(), SignVote(scale=0.5), OfOneLength()]


@pytest.mark.parametrize("operator", OPERATORS_HERE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_an_operator_combines_members_as_they_are(name: str, operator: Operator, monkeypatch) -> None:
    base, models = children(name)
    monkeypatch.setattr(formula, "BLOCK", 50)  # many blocks even in small tensors
    plan = ng.plan(ng.Members(models, example(name), base=base), method=operator)
    assert (plan.method, plan.maps) == (operator.name, {})
    fused = ng.apply(plan, ng.Members(models, example(name), base=base)).state_dict()
    for tensor, wanted in expected(operator, models, base).items():
        torch.testing.assert_close(fused[tensor], wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("operator", OPERATORS_HERE, ids=str)
@pytest.mark.parametrize("name", ["mlp_bias", "vgg_batch_norm", "resnet"])
def test_aligned_members_and_their_ancestor_are_combined_as_if_they_had_never_been_permuted(
    name: str, operator: Operator
) -> None:
    base, models = children(name)
    graph = ng.trace(base, example(name), verify=False)
    moved = [models[0], *(planted(model, graph, seed) for seed, model in enumerate(models[1:], 1))]
    ancestor = planted(base, graph, 9)
    members = ng.Members(moved, example(name), base=ancestor, graph=graph)
    plan = ng.plan(members, method=operator, align=ng.Permutation(restarts=1, reference=0))
    assert plan.method == f"{operator.name} after permutation"
    assert plan.options == {**operator.options, "align": "permutation(restarts=1, reference=0)"}
    fused = ng.apply(plan, members).state_dict()
    for tensor, wanted in expected(operator, models, base).items():
        torch.testing.assert_close(fused[tensor], wanted, rtol=1e-5, atol=1e-6)


def stored(place: Path, models: list[nn.Module], base: nn.Module, name: str) -> ng.Members:
    paths = [place / f"{m}.safetensors" for m in range(len(models))]
    for path, model in zip([*paths, place / "base.safetensors"], [*models, base], strict=True):
        write_checkpoint(model, path, {})
    return open_files(paths, lambda: build(name), name, example(name), base=place / "base.safetensors")


@pytest.mark.parametrize("align", [None, "permutation"])
@pytest.mark.parametrize("operator", OPERATORS_HERE, ids=str)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("mlp_bias", torch.float32), ("vgg_batch_norm", torch.bfloat16), ("attention", torch.float32)],
    ids=str,
)
def test_streamed_is_what_is_made_in_memory(
    tmp_path: Path, monkeypatch, name: str, dtype: torch.dtype, operator: Operator, align: str | None
) -> None:
    base, models = (
        made.to(dtype) if isinstance(made, nn.Module) else [m.to(dtype) for m in made] for made in children(name)
    )
    monkeypatch.setattr(formula, "BLOCK", 50)
    members = stored(tmp_path, models, base, name)
    plan = ng.plan(members, method=operator, align=align)
    in_memory = ng.Members(models, example(name).to(dtype), base=base, graph=members.graph)
    wanted = ng.apply(plan, in_memory).state_dict()
    progress: list[tuple[int, int]] = []
    fuse_stored(members, SavedPlan(plan, members.name), tmp_path / "out", progress=lambda *done: progress.append(done))
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor: (x.dtype, x.shape) for tensor, x in found.items()} == {
        tensor: (x.dtype, x.shape) for tensor, x in wanted.items()
    }
    for tensor, x in found.items():
        assert torch.equal(x, wanted[tensor]), tensor
    assert progress[-1][0] == progress[-1][1]
    record = provenance_of(tmp_path / "out" / "model.safetensors")
    assert record["method"] == plan.method
    path = tmp_path / "base.safetensors"
    source = {"name": path.name, "sha256": {path.name: sha256(path)}}
    assert record.get("base") == (source if operator.needs_base else None)


def test_the_ancestor_is_read_block_by_block(tmp_path: Path, monkeypatch) -> None:
    base, models = children("mlp_bias")
    members = stored(tmp_path, models, base, "mlp_bias")
    plan = ng.plan(members, method=SignVote())
    monkeypatch.setattr(formula, "BLOCK", 50)
    sizes: list[int] = []
    read = Entry.read

    def reading(entry: Entry, at: int, count: int) -> Tensor:
        if entry.file.name == "base.safetensors" and len(entry.shape) > 1:
            sizes.append(count)
        return read(entry, at, count)

    monkeypatch.setattr(Entry, "read", reading)
    fuse_stored(members, SavedPlan(plan, members.name), tmp_path / "out")
    assert sum(sizes) == sum(p.nbytes for p in base.parameters() if p.dim() > 1)
    assert max(sizes) <= 50 * 4
    assert len(sizes) > 10


@pytest.mark.parametrize("method", ["average", "permutation", "optimal_transport", "transplant"])
def test_the_fast_sum_is_the_operator_on_the_aligned_blocks(method: str) -> None:
    models = [build("vgg_batch_norm", seed).double() for seed in range(3)]
    plan = ng.plan(models, example("vgg_batch_norm").double(), method, weights=[1, 2, 5])
    fused = ng.apply(plan, models).state_dict()
    for name, tensor in fused.items():
        if tensor.is_floating_point():
            rows = FusedRows([model.state_dict()[name] for model in models], plan, name)
            blocks = rows.aligned(0, rows.count)
            assert rows.summed
            found = plan.operator.combine(Block(name, blocks, plan.coefficients(name)))
            torch.testing.assert_close(found, tensor, rtol=1e-12, atol=1e-12)


def test_operators_get_the_weights_of_their_tensor() -> None:
    seen: dict[str, tuple[float, ...]] = {}

    @dataclass(frozen=True)
    class Watching(Operator):
        name = "watching"

        def combine(self, block):
            seen[block.name] = tuple(block.weights)
            return block.members[0]

    models = [build("mlp_bias", seed) for seed in range(2)]
    ng.fuse(models, example("mlp_bias"), Watching(), weights={"*": [1, 1], "layers.0.*": [1, 3]})
    assert seen.pop("layers.0.weight") == seen.pop("layers.0.bias") == (0.25, 0.75)
    assert set(seen.values()) == {(0.5, 0.5)}


def test_kept_heads_stay_side_by_side_whatever_combines_the_trunk() -> None:
    models = [build("mlp_bias", seed) for seed in range(3)]
    x = example("mlp_bias")
    plan = ng.plan(models, x, Median(), align="permutation", heads="keep")
    fused = ng.apply(plan, models)
    by_mean = ng.apply(replace(plan, operator=ng.plan(models, x, "average").operator), models)
    (head,) = plan.details["heads"]
    assert plan.joint == {head}
    assert fused(x).shape[-1] == 3 * models[0](x).shape[-1]
    torch.testing.assert_close(fused.layers[2].weight, by_mean.layers[2].weight, rtol=0, atol=0)
    assert not torch.equal(fused.layers[0].weight, by_mean.layers[0].weight)


def test_what_an_operator_made_is_recovered_like_any_other() -> None:
    base, models = children("vgg_batch_norm")
    samples = [torch.randn(30, 3, 8, 8)]
    fusion = ng.Fusion.of(ng.Members(models, example("vgg_batch_norm"), base=base), SignVote(), calibration=samples)
    assert repr(fusion) == "Fusion(sign_vote of 3 members: member 0 33%, member 1 33%, member 2 33%)"
    better = fusion.refit().repair(samples).reestimate_batch_norm()
    assert [report.recovery for report in better.recoveries] == ["refit", "repair", "batch_norm"]
    assert better.plan is fusion.plan  # weighting by agreement is for the mean


def test_saved_plans_keep_operators_that_are_known_and_refuse_others(tmp_path: Path, monkeypatch) -> None:
    base, models = children("mlp_bias")
    members = ng.Members(models, example("mlp_bias"), base=base)
    plan = ng.plan(members, method=SignVote(scale=0.5), align="permutation")
    path = tmp_path / "plan.safetensors"
    with pytest.raises(PlanError, match=r"sign_vote\(scale=0.5\) cannot be saved: .* enter it in neurograft.operators"):
        save_plan(SavedPlan(plan), path)
    assert not path.exists()
    monkeypatch.setitem(OPERATORS, "sign_vote", SignVote)
    save_plan(SavedPlan(plan), path)
    loaded = load_plan(path).plan
    assert loaded.operator == SignVote(scale=0.5)
    torch.testing.assert_close(
        ng.apply(loaded, members).state_dict(), ng.apply(plan, members).state_dict(), rtol=0, atol=0
    )
    monkeypatch.delitem(OPERATORS, "sign_vote")
    with pytest.raises(CheckpointError, match="made with the operator 'sign_vote'; known: arcee_fusion"):
        load_plan(path)


def test_a_base_is_there_where_it_is_needed_and_fits() -> None:
    base, models = children("mlp_bias")
    x = example("mlp_bias")
    with pytest.raises(OptionError, match=r"sign_vote combines what members have changed: give their ancestor, base="):
        ng.plan(models, x, SignVote())
    members = ng.Members(models, x, base=base)
    plan = ng.plan(members, method=SignVote())
    with pytest.raises(PlanError, match="operator sign_vote needs the members' ancestor"):
        ng.apply(plan, models)
    with pytest.raises(MembersDiffer, match="the base is a Linear but the members are MLP"):
        ng.Members(models, x, base=nn.Linear(2, 2))
    lacking = copy.deepcopy(base)
    lacking.layers[1].bias = None
    with pytest.raises(MembersDiffer, match="the base lacks 'layers.1.bias'"):
        ng.Members(models, x, base=lacking)
    wide = type(base)(12, 20, 14, 10, bias=True)
    with pytest.raises(MembersDiffer, match="layers.0.weight has shape .* in the base"):
        ng.apply(plan, ng.Members(models, x, base=wide))
    with torch.no_grad():
        base.layers[0].weight[0, 0] = float("nan")
    with pytest.raises(BadWeights, match="layers.0.weight of the base holds 1 NaN"):
        ng.plan(members, method=SignVote())


def test_what_makes_no_sense_is_refused() -> None:
    models, x = [build("mlp_bias", seed) for seed in range(2)], example("mlp_bias")
    with pytest.raises(OptionError, match="align='transplant' chooses among all members' neurons"):
        ng.plan(models, x, Median(), align="transplant")
    with pytest.raises(OptionError, match="transplant decides it itself"):
        ng.plan(models, x, "transplant", align="permutation")
    with pytest.raises(OptionError, match="unknown method 'permutatoin'; did you mean 'permutation'"):
        ng.plan(models, x, Median(), align="permutatoin")
    with pytest.raises(OptionError, match="density: options of an operator are given to Median"):
        ng.plan(models, x, Median(), density=0.5)
    with pytest.raises(OptionError, match="operator 'sign_vote' has no option 'scael'; did you mean 'scale'"):
        SignVote(scael=2.0)  # type: ignore[call-arg]
    with pytest.raises(PlanError, match=r"group .*: the rows of \[A_1 … A_k\] must sum to 1 jointly.* sums to 2"):
        ng.plan(models, x, Owned(), align="permutation")

    @dataclass(frozen=True)
    class Flat(Operator):
        name = "flat"

        def combine(self, block):
            return block.members[0].flatten()

    with pytest.raises(PlanError, match=r"layers.0.weight: flat makes the shape \(192,\) of members' blocks"):
        ng.fuse(models, x, Flat())
