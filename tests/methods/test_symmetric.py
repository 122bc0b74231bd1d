"""Alignment in the widest class: members that a symmetry made of one network fuse into that network again."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.networks import MLP, NETWORKS, build, example
from tests.planting import planted_in_class
from torch import Tensor, nn

import neurograft as ng
from neurograft.applying.stored import fuse_stored, open_files
from neurograft.axes.symmetry import Symmetry
from neurograft.errors import MembersDiffer, OptionError
from neurograft.inputs import call
from neurograft.plans.saving import SavedPlan, load_plan, save_plan
from neurograft.tracing.bench import largest_change
from neurograft.tracing.canonical import components, touched
from neurograft.tracing.labelling import pinned_outputs

transformers = pytest.importorskip("transformers")

TOKENS = {"input_ids": torch.arange(14).reshape(2, 7)}


def llama(**changed: object) -> nn.Module:
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **heads, **changed}))


def gpt2(tied: bool = False) -> nn.Module:
    sizes = {"vocab_size": 20, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 8}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends, tie_word_embeddings=tied))


def vit() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    images = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 5}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, **images))


def tanh() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3))


IMAGES = {"pixel_values": torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))}
X = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
PLANTED = {
    "vit": (vit, IMAGES),
    "gpt2": (gpt2, TOKENS),
    "tied gpt2": (lambda: gpt2(tied=True), TOKENS),
    "llama": (llama, TOKENS),
    "tanh": (tanh, X),
    "relu": (lambda: MLP(5, 8, 7, 3, bias=True), X),
}


def doubled(inputs: object) -> object:
    if isinstance(inputs, dict):
        return {name: doubled(x) for name, x in inputs.items()}
    return inputs.double() if isinstance(inputs, Tensor) and inputs.is_floating_point() else inputs


def noisy(net: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net.double().eval()


def made(name: str, seed: int = 0) -> tuple[nn.Module, object]:
    make, inputs = PLANTED[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return noisy(make(), seed), doubled(inputs)


def change(one: nn.Module, other: nn.Module, inputs: object) -> float:
    """The largest change of the outputs, relative to the largest output."""
    outputs = []
    for net in (one, other):
        with torch.no_grad():
            outputs.append([x for _, x in pinned_outputs(call(net, inputs))])
    return largest_change(*outputs)


@pytest.mark.parametrize("name", PLANTED)
def test_thirty_of_thirty_random_elements_are_aligned_back(name: str) -> None:
    graph = ng.trace(*made(name))
    for seed in range(30):
        net, inputs = made(name, seed)
        other = planted_in_class(net, graph, seed)
        assert change(net, other, inputs) < 1e-6  # in float64, but for norms that compute in float32
        members = ng.Members([net, other], inputs, graph=graph)
        fused = ng.apply(ng.plan(members, method="symmetric"), members)
        assert change(net, fused, inputs) < 2e-6 if name == "llama" else change(net, fused, inputs) < 1e-9, seed


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in ("weight_norm", "unused")])
def test_a_random_element_of_any_network_is_aligned_back(name: str) -> None:
    net, inputs = build(name), example(name)
    graph = ng.trace(net, inputs)
    other = planted_in_class(net, graph, 1)
    fused = ng.apply(ng.plan([net, other], inputs, method="symmetric", graph=graph), [net, other])
    assert change(net, fused, inputs) < 1e-4


@pytest.mark.parametrize("name", PLANTED)
def test_activations_align_back(name: str) -> None:
    net, inputs = made(name)
    graph = ng.trace(net, inputs)
    nets = [net, planted_in_class(net, graph, 1)]
    if isinstance(inputs, dict) and "input_ids" in inputs:
        batches = [{"input_ids": torch.randint(0, 20, (64, 7), generator=torch.Generator().manual_seed(0))}]
    elif isinstance(inputs, dict):
        batches = [{"pixel_values": torch.randn(200, 1, 8, 8, dtype=torch.double)}]
    else:
        batches = [torch.randn(200, 5, dtype=torch.double)]
    fused = ng.fuse(nets, inputs, "symmetric", graph=graph, metric="activations", calibration=batches, recover=None)
    assert change(net, fused, inputs) < 1e-5


def test_the_result_does_not_depend_on_the_order_of_members() -> None:
    nets = [made("vit", seed)[0] for seed in range(3)]
    inputs = made("vit")[1]
    one = ng.fuse(nets, inputs, "symmetric")
    other = ng.fuse([nets[2], nets[0], nets[1]], inputs, "symmetric")
    assert change(one, other, inputs) < 1e-9
    pair = ng.fuse(nets[:2], inputs, "symmetric")
    assert change(pair, ng.fuse(nets[1::-1], inputs, "symmetric"), inputs) < 1e-9


def test_many_members_meet_in_one_gauge() -> None:
    net, inputs = made("gpt2")
    graph = ng.trace(net, inputs)
    nets = [net, *(planted_in_class(net, graph, seed) for seed in range(3))]
    assert change(net, ng.fuse(nets, inputs, "symmetric", graph=graph), inputs) < 1e-9


def test_a_fused_network_keeps_its_architecture_and_folded_scales_are_one() -> None:
    nets, inputs = [made("vit", seed)[0] for seed in range(2)], made("vit")[1]
    fused = ng.fuse(nets, inputs, "symmetric")
    assert {n: p.shape for n, p in fused.named_parameters()} == {n: p.shape for n, p in nets[0].named_parameters()}
    assert bool((fused.vit.layernorm.weight == 1).all())
    assert not bool((nets[0].vit.layernorm.weight == 1).any())


def test_the_ends_of_the_line_are_the_members() -> None:
    nets = [made("tanh", seed)[0] for seed in range(2)]
    labels = torch.arange(6) % 3
    found = ng.barrier(*nets, [(X.double(), labels)], method="symmetric", points=3)
    assert found.after.loss[0] == pytest.approx(found.before.loss[0], rel=1e-9)
    assert found.after.loss[-1] == pytest.approx(found.before.loss[-1], rel=1e-9)


def test_a_saved_plan_brings_members_into_canonical_form_again(tmp_path: Path) -> None:
    nets, inputs = [made("vit", seed)[0] for seed in range(2)], made("vit")[1]
    plan = ng.plan(nets, inputs, method="symmetric")
    save_plan(SavedPlan(plan), tmp_path / "plan.safetensors")
    loaded = load_plan(tmp_path / "plan.safetensors").plan
    assert loaded.canonical
    assert loaded.graph.steps == plan.graph.steps
    assert [g.symmetry for g in loaded.graph] == [g.symmetry for g in plan.graph]
    assert loaded.graph["vit.embeddings.cls_token:2"].symmetry is Symmetry.FIXING_ONE
    assert change(ng.apply(plan, nets), ng.apply(loaded, nets), inputs) == 0


def test_what_was_done_to_members_is_printed() -> None:
    nets, inputs = [made("vit", seed)[0] for seed in range(2)], made("vit")[1]
    text = " ".join(str(ng.plan(nets, inputs, method="symmetric")).split())
    # two blocks of two norms and the last one; 4 writers with biases, patches with theirs, class token and positions
    assert "5 scales folded, 12 tensors centred, 2 biases moved on, 2 biases dropped, 4 groups balanced" in text


def test_the_canonical_form_is_made_a_layer_at_a_time() -> None:
    graph = ng.trace(*made("vit"))
    names = [{name for step in part for name in touched(step)} for part in components(graph.steps)]
    for own in names:
        assert len({name.split(".")[2] for name in own if ".layers." in name}) <= 1, own


def test_streamed_is_applied(tmp_path: Path) -> None:
    nets = [made("vit", seed)[0].float() for seed in range(2)]
    paths = [tmp_path / f"{m}.safetensors" for m in range(2)]
    for net, path in zip(nets, paths, strict=True):
        save_file({name: x.contiguous() for name, x in net.state_dict().items()}, path)
    stored = open_files(paths, vit, "tests:vit", IMAGES)
    plan = ng.plan(stored, method="symmetric")
    fuse_stored(stored, SavedPlan(plan, stored.name), tmp_path / "fused.safetensors")
    applied = ng.apply(plan, nets).state_dict()
    streamed = load_file(tmp_path / "fused.safetensors")
    assert set(streamed) == set(applied)
    for name, x in streamed.items():
        torch.testing.assert_close(x, applied[name], rtol=0, atol=0)


def test_refit_and_repair_take_members_in_canonical_form() -> None:
    nets = [made("tanh", seed)[0] for seed in range(2)]
    batches = [torch.randn(200, 5, dtype=torch.double, generator=torch.Generator().manual_seed(2))]
    fusion = ng.Fusion.of(ng.Members(nets, X.double()), "symmetric")
    mean = (nets[0](batches[0]) + nets[1](batches[0])) / 2
    refitted = fusion.refit(batches, agree=False)
    assert (refitted.model(batches[0]) - mean).norm() < 0.5 * (fusion.model(batches[0]) - mean).norm()
    report = str(fusion.repair(batches).report.recovery)
    assert "rotated" in report or "standard" in report


def test_an_operator_combines_members_in_the_aligned_basis() -> None:
    from neurograft.operators.mean import Mean

    net, inputs = made("vit")
    other = planted_in_class(net, ng.trace(net, inputs), 1)
    fused = ng.fuse([net, other], inputs, Mean(), align="symmetric")
    assert change(net, fused, inputs) < 1e-9


def test_the_ancestor_is_brought_into_the_aligned_basis_too() -> None:
    base, inputs = made("vit")
    graph = ng.trace(base, inputs)
    nets = [planted_in_class(base, graph, seed) for seed in range(2)]
    fused = ng.fuse(nets, inputs, ng.TaskArithmetic(), base=base, align="symmetric")
    assert change(base, fused, inputs) < 1e-9


def test_other_widths_are_refused() -> None:
    nets = [MLP(5, n, 3).double() for n in (8, 9)]
    with pytest.raises(MembersDiffer, match="symmetric needs equal widths"):
        ng.fuse(nets, X.double(), "symmetric")
    with pytest.raises(OptionError, match="no option 'metrics'"):
        ng.plan([nets[0]] * 2, X.double(), method="symmetric", metrics="weights")


def test_members_are_only_read() -> None:
    nets, inputs = [made("gpt2", seed)[0] for seed in range(2)], made("gpt2")[1]
    before = [{name: x.clone() for name, x in net.state_dict().items()} for net in nets]
    ng.fuse(nets, inputs, "symmetric")
    for net, kept in zip(nets, before, strict=True):
        assert all(torch.equal(x, kept[name]) for name, x in net.state_dict().items())


def test_shares_are_measured_by_squares() -> None:
    nets, inputs = [made("vit", seed)[0] for seed in range(2)], made("vit")[1]
    plan = ng.plan(nets, inputs, method="symmetric", weights=[1, 3])
    assert plan.shares["vit.embeddings.cls_token:2"] == pytest.approx((0.5, 0.5))
    assert ng.Fusion.of(ng.Members(nets, inputs, weights=[1, 3]), "symmetric").report.shares == pytest.approx(
        (0.25, 0.75)
    )
