"""`trace` on networks that were described by hand: groups, reasons, orders, options, and the caller's state."""

import warnings

import pytest
import torch
from torch import Tensor, nn

import neurograft as ng
from neurograft.errors import InputError, OptionError, TraceError, UnruledOp
from neurograft.tracing.graph import FixedReason
from tests.networks import NETWORKS, build, example
from tests.tracing.shares import free_share

# free groups with their units, in parameter order, as a person would name them
FREE: dict[str, dict[str, int]] = {
    "mlp": {"layers.0.weight:0": 16, "layers.1.weight:0": 14},
    "mlp_batch_norm": {"layers.0.weight:0": 16, "layers.1.weight:0": 14},
    "mlp_prelu": {"layers.0.weight:0": 16, "layers.1.weight:0": 14},
    "lenet": {"c1.weight:0": 4, "c2.weight:0": 6, "f1.weight:0": 12},
    "vgg_batch_norm": {"features.0.weight:0": 8, "features.4.weight:0": 12, "features.7.weight:0": 12},
    "resnet": {
        "conv1.weight:0": 8,
        "blocks.0.conv1.weight:0": 8,
        "blocks.1.conv1.weight:0": 8,
        "blocks.2.conv1.weight:0": 12,
        "blocks.2.conv2.weight:0": 12,
        "blocks.3.conv1.weight:0": 12,
    },
    "layer_norm_image": {"conv1.weight:0": 6, "conv2.weight:0": 5},
    "conv1d": {"stem.weight:0": 6},
    "conv3d": {"0.weight:0": 4, "3.weight:0": 6},
    # groups of the convolution, channels in each on the way in, channels in each on the way out
    "grouped": {"enter.weight:0": 3, "enter.weight:0.1": 4, "inner.weight:0": 3, "leave.weight:0": 6},
    "depthwise": {"enter.weight:0": 12, "leave.weight:0": 6},
    "depthwise_double": {"enter.weight:0": 12, "inner.weight:0": 2, "leave.weight:0": 6},
    "autoencoder": {"down1.weight:0": 6, "down2.weight:0": 8, "up1.weight:1": 6},
    "densenet": {"stem.weight:0": 6, "norms.1.weight:0": 4, "norms.2.weight:0": 4},
    "unet": {"enter.weight:0": 6, "down.weight:0": 8, "up.weight:1": 5, "join.weight:0": 7},
    "two_inputs": {"left.weight:0": 8, "trunk.weight:0": 9},
    "head_first": {"head.weight:1": 7, "trunk.weight:1": 9},
    "tied": {"embed.weight:1": 8, "hidden.weight:0": 12},
    "twice": {"stem.weight:0": 8},
    "unused": {"stem.weight:0": 8},
    "bare": {"first:1": 9},
    "mixer": {"position:2": 8, "tokens1.weight:0": 6, "channels1.weight:0": 10},
    "squeeze_excite": {"stem.weight:0": 8, "down.weight:0": 4},
    "attention": {"stem.weight:0": 12, "qkv.weight:0.1": 3, "qkv.weight:0.2": 4},
    "weight_norm": {"first.bias:0": 9, "second.bias:0": 7},
}


@pytest.mark.parametrize("name", FREE)
def test_the_free_groups_are_those_a_person_names(name: str) -> None:
    graph = ng.trace(build(name), example(name))
    found = {group.name: group.size for group in graph.free}
    if name == "densenet":
        # what a later layer adds is named after the first norm that reads it
        assert sorted(found.values()) == sorted(FREE[name].values())
    else:
        assert found == FREE[name]
    assert graph.unruled == ()
    assert graph.proven.startswith("proven: outputs moved by")
    # a branch that never runs is fixed
    assert free_share(build(name), graph) >= (0.5 if name == "unused" else 0.95)


@pytest.mark.parametrize("name", NETWORKS)
def test_layouts_cover_every_dimension(name: str) -> None:
    from neurograft.axes.layout import layout_size

    model = build(name)
    graph = ng.trace(model, example(name), verify=False)
    for key, x in model.named_parameters():
        assert graph.tensors[key].shape == tuple(x.shape)
        assert tuple(layout_size(layout) for layout in graph.tensors[key].layouts) == tuple(x.shape)


class Policy(nn.Module):
    """Draws no action, but makes a distribution of hidden neurons, which checks its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.spread, self.head = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.distributions.Normal(self.body(x), self.spread(x).exp())
        return torch.distributions.Categorical(logits=self.head(hidden.mean + hidden.stddev)).logits


def test_distributions_leave_neurons_free() -> None:
    graph = ng.trace(Policy().eval(), torch.randn(4, 5), strict=True)
    assert [group.size for group in graph.free] == [8]


class Returning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.register_buffer("classes", torch.rand(3))
        self.scale = nn.Parameter(torch.rand(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.head(self.body(x).relu()), self.classes, self.scale


def test_buffers_and_parameters_that_are_returned_are_reached() -> None:
    graph = ng.trace(Returning(), torch.randn(4, 5))
    assert graph.unreached == ()
    assert graph["classes:0"].reason is graph["scale:0"].reason is FixedReason.OUTPUT
    assert [group.name for group in graph.free] == ["body.weight:0"]


def test_every_fixed_group_says_why() -> None:
    graph = ng.trace(build("tied"), example("tied"))
    assert graph["embed.weight:0"].why == "looked up by index: embedding in embed"
    assert graph["embed.weight:0"].reason is FixedReason.POSITIONS
    graph = ng.trace(build("mlp"), example("mlp"))
    assert graph["layers.0.weight:1"].why == "the input"
    assert graph["layers.2.weight:0"].why == "the output"
    assert graph["layers.0.weight:1"].reason is FixedReason.INPUT
    assert graph["layers.2.weight:0"].reason is FixedReason.OUTPUT
    assert all(group.why for group in graph if group.fixed)


def test_execution_order_is_the_order_in_which_the_run_makes_neurons() -> None:
    graph = ng.trace(build("head_first"), example("head_first"))
    assert graph.execution_order == ("trunk.weight:1", "head.weight:1")
    assert graph.backward_order == ("head.weight:1", "trunk.weight:1")


def test_backward_order_takes_residual_streams_first() -> None:
    graph = ng.trace(build("resnet"), example("resnet"))
    assert graph.backward_order[:2] == ("blocks.2.conv2.weight:0", "conv1.weight:0")
    assert set(graph.backward_order) == set(graph.execution_order) == {group.name for group in graph.outermost}


def test_asked_patterns_fix_every_group_they_touch() -> None:
    graph = ng.trace(build("lenet"), example("lenet"), fixed=["f1.*"])
    assert graph["f1.weight:0"].reason is FixedReason.ASKED
    assert graph["c2.weight:0"].reason is FixedReason.ASKED
    assert not graph["c1.weight:0"].fixed


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(OptionError, match=r"fixed='heads.*' matches no parameter; .*known:"):
        ng.trace(build("mlp"), example("mlp"), fixed="heads.*")


def test_outputs_choose_what_has_a_meaning() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            hidden = self.a(x).relu()
            return {"scores": self.b(hidden), "hidden": hidden}

    x = torch.randn(4, 3)
    assert ng.trace(Features(), x)["a.weight:0"].fixed
    graph = ng.trace(Features(), x, outputs="scores")
    assert not graph["a.weight:0"].fixed
    assert graph.outputs == ("scores",)
    with pytest.raises(OptionError, match="outputs='logit' matches nothing"):
        ng.trace(Features(), x, outputs="logit")


def test_several_example_inputs_make_one_graph() -> None:
    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right, self.head = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x).relu()
            return self.head((self.left(h) if x.sum() > 0 else self.right(h)).relu())

    model, positive = Switch(), torch.ones(2, 4)
    graph = ng.trace(model, positive)
    assert graph.unreached == ("right.weight", "right.bias")
    assert graph["right.weight:0"].reason is FixedReason.UNREACHED
    graph = ng.trace(model, [positive, -positive])
    assert graph.unreached == ()
    assert {slot.tensor for slot in graph["left.weight:0"].slots} >= {"left.weight", "right.weight", "head.weight"}


def test_unreached_parameters_are_listed() -> None:
    assert ng.trace(build("unused"), example("unused")).unreached == ("spare", "idle.weight", "idle.bias")


def test_an_empty_list_of_inputs_is_refused() -> None:
    with pytest.raises(InputError, match="empty list"):
        ng.trace(build("mlp"), [])


def test_wrong_inputs_say_so() -> None:
    with pytest.raises(TraceError, match="MLP does not run on the example inputs"):
        ng.trace(build("mlp"), torch.randn(2, 5))
    with pytest.raises(InputError, match="must be a tensor, a tuple"):
        ng.trace(build("mlp"), "hello")


class Sorted(nn.Module):
    """Ends in an op that has no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(torch.linalg.matrix_exp(h[:, :, None] * h[:, None, :]).sum(-1))


def test_an_op_without_a_rule_fixes_what_enters_and_warns_once() -> None:
    with pytest.warns(UserWarning, match=r"no rule for linalg_matrix_exp in the network itself: fixes a.weight:0"):
        graph = ng.trace(Sorted(), torch.randn(2, 3))
    assert graph["a.weight:0"].fixed
    assert graph.unruled[0].startswith("linalg_matrix_exp")


def test_strict_raises_for_an_op_without_a_rule() -> None:
    with pytest.raises(UnruledOp, match=r"no rule for linalg_matrix_exp.*a\.weight:0"):
        ng.trace(Sorted(), torch.randn(2, 3), strict=True)


def snapshot(model: nn.Module) -> list[object]:
    """Everything that tracing must leave alone."""
    modes = [module.training for module in model.modules()]
    return [*modes, *(x.clone() for x in model.state_dict().values()), torch.get_rng_state()]


def same(a: list[object], b: list[object]) -> bool:
    """Whether two snapshots are equal to the bit."""
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_caller_gets_everything_back_as_it_was(name: str) -> None:
    model = build(name).train()
    next(iter(model.children())).eval() if list(model.children()) else None
    before, fast = snapshot(model), torch.backends.mha.get_fastpath_enabled()
    hooks = len(nn.modules.module._global_forward_pre_hooks)
    ng.trace(model, example(name))
    assert same(before, snapshot(model))
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert len(nn.modules.module._global_forward_pre_hooks) == hooks
    assert all(x.grad is None for x in model.parameters())


def test_state_comes_back_after_an_exception() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            self.norm.running_mean.add_(1)
            torch.rand(1)
            raise RuntimeError("no")

    model, x = Failing().train(), torch.randn(2, 3)
    before = snapshot(model)
    with pytest.raises(TraceError, match="RuntimeError: no"):
        ng.trace(model, x)
    assert same(before, snapshot(model))
    assert len(nn.modules.module._global_forward_pre_hooks) == 0


def test_a_model_on_the_meta_device_is_traced_and_unproven() -> None:
    with torch.device("meta"):
        model = NETWORKS["resnet"].make()
    graph = ng.trace(model, example("resnet"))
    real = ng.trace(build("resnet"), example("resnet"))
    assert graph.proven == "unproven (meta device)"
    assert [(g.name, g.slots) for g in graph] == [(g.name, g.slots) for g in real]


def test_a_network_without_parameters_has_no_groups() -> None:
    graph = ng.trace(nn.Sequential(nn.ReLU(), nn.Flatten()), torch.randn(2, 3))
    assert len(graph) == 0


def test_the_table_says_who_makes_and_reads_what() -> None:
    text = str(ng.trace(build("tied"), example("tied")))
    assert "Tied: 2 free groups, 1 fixed" in text
    assert "fixed: looked up by index" in text
    assert "the norm in front of the reader: norm.weight, norm.bias" in text


def test_tracing_warns_of_nothing_on_plain_networks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in NETWORKS:
            ng.trace(build(name), example(name))
