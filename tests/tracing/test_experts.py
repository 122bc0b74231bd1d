"""Experts of a mixture are units where the routing can be followed; elsewhere they are fixed with that reason."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import neurograft as ng
from neurograft.errors import OptionError, PlanError
from neurograft.tracing.graph import Group, NeuronGraph
from tests.fusion import planned
from tests.tracing.experts import CHOSEN, EXPERTS, FIXED, FOLLOWED, HIDDEN, WIDTH, Codebook, Mixture, Separate, rows
from tests.tracing.huggingface import made, roughen

# where one product over all experts makes what they say
ALL_AT_ONCE = {"soft", "scattered", "one_hot", "compared", "gathered"}


def mixture(name: str, seed: int = 0) -> Mixture:
    torch.manual_seed(seed)
    return Mixture(FOLLOWED[name] if name in FOLLOWED else FIXED[name][0]).eval()


def traced(model: nn.Module, inputs: Any) -> NeuronGraph:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        graph = ng.trace(model, inputs, strict=True)
    proof = ng.verify(model, graph, inputs, seed=3, deep=True)
    assert proof.passed, str(proof)
    return graph


def places(group: Group) -> set[tuple[str, int, str]]:
    return {(slot.tensor, slot.dim, slot.role) for slot in group.slots}


@pytest.mark.parametrize("name", FOLLOWED)
def test_experts_are_units(name: str) -> None:
    model = mixture(name)
    graph = traced(model, rows())
    experts, hidden = graph["router.weight:0"], graph["experts.up:1"]
    # one product over all experts makes them; a product per expert does not
    stacked = "out" if name in ALL_AT_ONCE else "elementwise"
    assert sorted(group.size for group in graph.free) == sorted([WIDTH, EXPERTS, HIDDEN])
    assert places(experts) == {
        ("router.weight", 0, "out"),
        ("router.bias", 0, "out"),
        ("experts.up", 0, stacked),
        ("experts.bias", 0, stacked),
        ("experts.down", 0, "elementwise"),
    }
    assert places(hidden) == {("experts.up", 1, "out"), ("experts.bias", 1, "out"), ("experts.down", 2, "in")}
    assert hidden.inside == experts.name
    assert any("softmax" in why for why in experts.reduced_by)
    assert bool(experts.ranked_by) == (name != "soft")
    assert ng.verify(model, graph, rows(9, seed=8), seed=4).passed


@pytest.mark.parametrize("name", FIXED)
def test_experts_whose_routing_is_not_followed_are_fixed_with_that_reason(name: str) -> None:
    model = mixture(name)
    graph = traced(model, rows())
    assert graph["router.weight:0"].reason is FIXED[name][1]
    assert not graph["experts.up:1"].fixed


def test_experts_in_modules_of_their_own_are_fixed() -> None:
    # a slot says where unit i sits in one tensor; units that are tensors of their own have no such place
    torch.manual_seed(0)
    graph = traced(Separate().eval(), rows())
    why = "its units are read one by one (eq in the network itself) and not treated alike"
    assert graph["router.weight:0"].why == why
    assert {graph[f"experts.{e}.0.weight:0"].size for e in range(EXPERTS)} == {HIDDEN}
    assert not any(graph[f"experts.{e}.0.weight:0"].fixed for e in range(EXPERTS))


def test_entries_of_a_codebook_are_units() -> None:
    torch.manual_seed(0)
    graph = traced(Codebook().eval(), rows())
    assert not graph["table.weight:0"].fixed
    assert graph["table.weight:0"].ranked_by == ("argmin in the network itself",)


@pytest.mark.parametrize("name", ["looked_up", "grouped", "scattered"])
def test_a_planted_order_of_experts_is_found_and_undone(name: str) -> None:
    model = mixture(name)
    graph = ng.trace(model, rows())
    other = ng.permute(
        model, graph, {"router.weight:0": [2, 0, 3, 1], "experts.up:1": [5, 3, 1, 0, 2, 4, 11, 10, 9, 8, 7, 6]}
    )
    assert torch.equal(other.router.weight, model.router.weight[[2, 0, 3, 1]])
    fused = ng.fuse([model, other], rows(), method="permutation")
    torch.testing.assert_close(fused(rows()), model(rows()))


@pytest.mark.parametrize("name", ["looked_up", "grouped"])
def test_transplanted_experts_are_whole(name: str) -> None:
    models = [mixture(name, seed) for seed in range(2)]
    plan = ng.plan(models, rows(), method="transplant")
    assert set(plan.maps) == {"stem.weight:0", "router.weight:0"}
    kept = [m.merge for m in plan.maps["router.weight:0"]]
    stream = [m.merge for m in plan.maps["stem.weight:0"]]
    fused = ng.apply(plan, models)
    for model, experts, neurons in zip(models, kept, stream, strict=True):
        for own, new in zip(experts.source.tolist(), experts.target.tolist(), strict=True):
            expected = torch.zeros(HIDDEN, WIDTH)
            expected[:, neurons.target] = model.experts.up[own][:, neurons.source]
            assert torch.equal(fused.experts.up[new], expected)
    assert any("topk in the network itself chooses among all of them" in warning for warning in plan.warnings)


@pytest.mark.parametrize("name", ["looked_up", "grouped", "scattered"])
def test_a_mixture_fused_with_itself_is_itself(name: str) -> None:
    model = mixture(name)
    for method, options in (("average", {}), ("transplant", {"diversity": True}), ("optimal_transport", {})):
        fused = planned([model, copy.deepcopy(model)], rows(), method=method, **options)
        torch.testing.assert_close(fused(rows()), model(rows()), msg=method)


def test_as_many_experts_stay_as_a_row_is_sent_to() -> None:
    model = mixture("scattered")
    graph = ng.trace(model, rows())
    assert graph["router.weight:0"].least == CHOSEN
    with pytest.raises(OptionError, match=rf"at least {CHOSEN} \(topk in the network itself chooses as many\)"):
        ng.plan([model, mixture("scattered", 1)], rows(), graph=graph, width={"router*": 1})


def test_experts_of_several_members_do_not_run_side_by_side() -> None:
    models = [mixture("looked_up", seed) for seed in range(2)]
    with pytest.raises(PlanError, match="would choose among all members' units at once"):
        ng.combine(models, rows())


def test_ties_are_found_by_the_proof() -> None:
    class Tied(nn.Module):
        """Chooses among logits that are zero nearly always."""

        def __init__(self) -> None:
            super().__init__()
            self.router, self.table = nn.Linear(5, EXPERTS), nn.Parameter(torch.randn(EXPERTS, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.table[(self.router(x) - 9).relu().argmax(-1)]

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"these groups moved the outputs and are fixed now: table:0"):
        graph = ng.trace(Tied().eval(), rows())
    assert graph["table:0"].fixed


KEEPING: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda i: i.flatten(),
    "transpose": lambda i: i.transpose(0, -1),
    "clone": lambda i: i.clone().detach(),
    "cast": lambda i: i.float().long(),
    "narrow": lambda i: i[: max(1, len(i) // 2)],
    "expand": lambda i: i[None].expand(2, *i.shape),
    "shuffle": lambda i: i[torch.arange(len(i)).flip(0)],
    "put": lambda i: i.reshape(-1)[:, None],
}
MISREADING: dict[str, Callable[[Tensor], Tensor]] = {
    "add": lambda i: (i + 1) % EXPERTS,
    "clamp": lambda i: i.clamp(max=EXPERTS - 2),
    "mask": lambda i: torch.where(i == 1, torch.zeros_like(i), i),
    "cumulate": lambda i: i.cumsum(0) % EXPERTS,
    "in_place": lambda i: i.clone().fill_(2),
}
READING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index": lambda table, i: table[i],
    "embedding": lambda table, i: F.embedding(i, table),
    "one_hot": lambda table, i: F.one_hot(i, EXPERTS).float() @ table,
    "compared": lambda table, i: (i[..., None] == torch.arange(EXPERTS)).float() @ table,
    "select": lambda table, i: table.index_select(0, i.reshape(-1)),
}


@given(
    st.lists(st.sampled_from(sorted(KEEPING)), max_size=4),
    st.sampled_from([None, *sorted(MISREADING)]),
    st.sampled_from(sorted(READING)),
)
@settings(max_examples=40, deadline=None)
def test_numbers_are_followed_through_what_keeps_them_and_no_further(
    keeping: list[str], misreading: str | None, reading: str
) -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.table = nn.Linear(5, EXPERTS), nn.Embedding(EXPERTS, 3)

        def forward(self, x: Tensor) -> Tensor:
            numbers = self.router(x).topk(2, -1).indices
            for step in keeping:
                numbers = KEEPING[step](numbers)
            if misreading is not None:
                numbers = MISREADING[misreading](numbers)
            return READING[reading](self.table.weight, numbers)

    torch.manual_seed(1)
    graph = traced(Chain().eval(), rows(8))
    assert graph["router.weight:0"].fixed == (misreading is not None)


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm"])
def test_mixtral_gives_the_same_units_however_its_experts_are_run(implementation: str) -> None:
    pytest.importorskip("transformers")
    model, inputs = made("mixtral")
    model.config._experts_implementation = implementation
    graph = traced(model, inputs)
    for layer in ("model.layers.0.mlp", "model.layers.1.mlp"):
        experts = graph[f"{layer}.gate.weight:0"]
        assert places(experts) == {
            (f"{layer}.gate.weight", 0, "out"),
            (f"{layer}.experts.gate_up_proj", 0, "elementwise"),
            (f"{layer}.experts.down_proj", 0, "elementwise"),
        }
        assert graph[f"{layer}.experts.gate_up_proj:1"].inside == experts.name
    pruned = ng.prune(model, inputs, ratio=0.5)
    assert pruned.config.num_local_experts == pruned.model.layers[0].mlp.experts.num_experts == 2
    assert pruned.config.num_experts_per_tok == 2


def other_mixtures() -> dict[str, tuple[Callable[[], nn.Module], dict[str, int]]]:
    """Further mixtures of transformers: how to make one, and its experts (teams of experts, and those in a team)."""
    import transformers as hf

    def small(**options: Any) -> dict[str, Any]:
        sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "head_dim": 8}
        return {**sizes, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, **options}

    teams = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "n_shared_experts": 1, "first_k_dense_replace": 0}
    ranks = {
        "head_dim": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    }
    return {
        "olmoe": (
            lambda: hf.OlmoeForCausalLM(hf.OlmoeConfig(**small(num_experts=4, num_experts_per_tok=2))),
            {"model.layers.0.mlp.gate.weight:0": 4},
        ),
        # interleaved gates, biases
        "gpt_oss": (
            lambda: hf.GptOssForCausalLM(hf.GptOssConfig(**small(num_local_experts=4, num_experts_per_tok=2))),
            {"model.layers.0.mlp.router.weight:0": 4},
        ),
        # teams of experts are chosen first, then experts of these teams
        "deepseek_v3": (
            lambda: hf.DeepseekV3ForCausalLM(
                hf.DeepseekV3Config(
                    **small(**teams, **ranks, num_experts_per_tok=2, moe_intermediate_size=12, num_key_value_heads=4)
                )
            ),
            {"model.layers.0.mlp.experts.gate_up_proj:0": 4, "model.layers.0.mlp.experts.gate_up_proj:0.1": 2},
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["olmoe", "gpt_oss", "deepseek_v3"])
def test_other_mixtures_of_transformers(name: str) -> None:
    pytest.importorskip("transformers")
    make, expected = other_mixtures()[name]
    torch.manual_seed(0)
    inputs = {"input_ids": torch.randint(3, 50, (2, 7))}
    graph = traced(roughen(make()), inputs)
    assert {group.name: group.size for group in graph.free if group.ranked_by} == expected
