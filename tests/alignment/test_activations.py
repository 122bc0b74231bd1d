import pytest
import torch
from tests.fusion import planned
from tests.networks import MLP, build, example
from tests.planting import largest_change, planted
from torch import Tensor, nn

import neurograft as ng
from neurograft.alignment.activations import group_activations, member_activations, member_cells
from neurograft.errors import InputError, OptionError
from neurograft.members.members import Members


def batch(name: str, count: int = 64) -> Tensor:
    return torch.randn(count, *example(name).shape[1:], generator=torch.Generator().manual_seed(5))


def members_of(models: list[nn.Module], graph: ng.NeuronGraph, batches: list[Tensor] | None) -> Members:
    return Members.traced(models, [graph] * len(models)).changed(calibration=batches)


def test_pre_and_post_are_the_two_sides_of_the_nonlinearity() -> None:
    net, x = MLP(5, 7, 6, 3, bias=True), torch.randn(20, 5)
    graph = ng.trace(net, x)
    hidden = [net.layers[0](x).detach()]
    hidden.append(net.layers[1](hidden[0].relu()).detach())
    for when, change in (("pre", lambda h: h), ("post", torch.relu)):
        found = group_activations(net, graph, [x[:8], x[8:]], when=when, samples=20)
        for i, values in enumerate(hidden):
            torch.testing.assert_close(found[f"layers.{i}.weight:0"], change(values))


def test_pre_is_taken_after_the_norm() -> None:
    net, x = MLP(5, 7, 3, norm=nn.BatchNorm1d).eval(), torch.randn(20, 5)
    with torch.no_grad():
        net.norms[0].running_mean.normal_()
    found = group_activations(net, ng.trace(net, x), [x], samples=20)
    torch.testing.assert_close(found["layers.0.weight:0"], net.norms[0](net.layers[0](x)).detach())


def test_no_more_rows_than_asked_and_the_same_in_every_network() -> None:
    model, x = build("vgg"), batch("vgg")
    graph = ng.trace(model, x, verify=False)
    other = planted(model, graph, 1)
    one, two = (group_activations(m, graph, [x[:32], x[32:]], samples=50) for m in (model, other))
    for group in graph.outermost:
        assert one[group.name].shape == (50, group.size)
        torch.testing.assert_close(one[group.name].sort(1).values, two[group.name].sort(1).values, rtol=1e-4, atol=1e-5)


def test_it_stops_when_enough_inputs_were_seen() -> None:
    net = MLP(5, 7, 3)
    graph = ng.trace(net, torch.randn(2, 5))
    seen = []

    class Counting:
        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            if i >= 10:
                raise IndexError
            seen.append(i)
            return torch.randn(8, 5), torch.zeros(8)

    found = group_activations(net, graph, Counting(), samples=20)  # type: ignore[arg-type]
    assert seen == [0, 1, 2]
    assert found["layers.0.weight:0"].shape == (20, 7)


def test_rows_are_a_uniform_choice_among_all_batches() -> None:
    net = nn.Sequential(nn.Conv1d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(100, 2)).eval()
    with torch.no_grad():
        net[0].weight.fill_(1)
    x = torch.arange(40.0)[:, None, None].expand(40, 1, 50)
    graph = ng.trace(net, x[:2])
    found = group_activations(net, graph, list(x.split(10)), samples=40)
    rows = found["0.weight:0"][:, 0]
    assert len(rows) == 40
    assert all(bool(((rows >= 10 * i) & (rows < 10 * i + 10)).any()) for i in range(4))


def test_channels_of_a_head_are_rows_or_cells() -> None:
    model, x = build("attention"), batch("attention", 8)
    graph = ng.trace(model, x, verify=False)
    members = members_of([model], graph, [x])
    heads, channels = "qkv.weight:0.1", "qkv.weight:0.2"
    assert member_activations(members, samples=8)[0][heads].shape[1] == 3
    cells = member_cells(members, samples=8)[0]
    assert cells[heads, channels].shape[1:] == (3, 4)
    assert (heads, None) not in cells


@pytest.mark.parametrize("name", ["attention", "resnet_group_norm", "grouped", "mixer"])
@pytest.mark.parametrize("method", ["permutation", "optimal_transport"])
def test_units_are_matched_though_their_insides_are_permuted_too(name: str, method: str) -> None:
    model, x = build(name), batch(name)
    graph = ng.trace(model, x, verify=False)
    members = [model, planted(model, graph, 1)]
    fused = planned(members, x, method, graph=graph, metric="activations", calibration=[x])
    assert largest_change(fused, model) < 1e-5


def test_a_network_comes_back_as_it_was() -> None:
    model, x = build("resnet").train(), batch("resnet", 4)
    graph = ng.trace(model, x, verify=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    group_activations(model, graph, [x])
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_missing_is_said() -> None:
    model, x = MLP(5, 7, 3), torch.randn(4, 5)
    graph = ng.trace(model, x)
    with pytest.raises(OptionError, match="needs calibration batches: pass calibration="):
        member_activations(members_of([model], graph, None))
    with pytest.raises(InputError, match="the calibration batches hold no inputs"):
        member_cells(members_of([model], graph, []))
    with pytest.raises(InputError, match="MLP cannot take calibration batch 1"):
        group_activations(model, graph, [x, x[:, :2]])
