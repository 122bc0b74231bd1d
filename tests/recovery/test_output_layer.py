"""The output layer solved on cross-entropy: the minimum it promises, what it wins, and where it does not apply."""

import pytest
import torch
from tests.fusion import refit_and_report
from torch import Tensor, nn

import neurograft as ng
from neurograft.recovery.output_layer import _cross_entropy, _solved


def test_the_solution_is_the_minimum_for_its_ridge() -> None:
    torch.manual_seed(0)
    x, p = torch.randn(200, 6).double(), torch.randn(200, 4).double().softmax(1)
    start = torch.randn(6, 4).double(), torch.zeros(4).double()
    weight, bias = _solved(x, p, start, start, 0.01)
    assert bias is not None
    weight.requires_grad_()
    bias.requires_grad_()
    scale = 0.01 * float(x.square().sum(0).mean() / len(x))
    loss = _cross_entropy(x, p, weight, bias) + 0.5 * scale * (weight - start[0]).square().sum()
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-5)


def member(seed: int, *last: nn.Module) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 4), *last)


def taught() -> tuple[list[nn.Module], list[Tensor], list[ng.Statistics]]:
    """Two members that each know two classes: the halves of a plane's left and right side."""
    nets, x = [], []
    for m in range(2):
        net = member(m)
        own = torch.randn(400, 2) * torch.tensor([0.6, 1.0]) + torch.tensor([2.0 * (2 * m - 1), 0.0])
        y = 2 * m + (own[:, 1] > 0).long()
        optimiser = torch.optim.Adam(net.parameters(), 0.02)
        for _ in range(150):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(own), y).backward()
            optimiser.step()
        nets.append(net)
        x.append(own)
    return nets, x, [ng.statistics(net, [own]) for net, own in zip(nets, x, strict=True)]


def test_a_target_of_probabilities_is_what_the_outputs_come_nearer_to() -> None:
    nets, x, own = taught()
    inputs = torch.cat(x)[torch.randperm(800)]
    labels = 2 * (inputs[:, 0] > 0) + (inputs[:, 1] > 0)
    plan = ng.plan(nets, inputs[:2])
    fused = ng.apply(plan, nets)
    target = ng.Ensemble(nets, "probabilities", statistics=own)
    plain, _ = refit_and_report(fused, plan, nets, [inputs])
    solved, report = refit_and_report(fused, plan, nets, [inputs], target=target)
    assert any("solved on cross-entropy" in note for note in report.notes)

    def accuracy(net: nn.Module) -> float:
        return ng.evaluate(net, [(inputs, labels)]).accuracy

    assert accuracy(target) > 0.95
    assert accuracy(solved) > accuracy(plain)
    again, _ = refit_and_report(fused, plan, nets, [inputs], target=target)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in solved.state_dict().items())


@pytest.mark.parametrize("last", [nn.Softmax(dim=1), nn.Tanh()])
def test_networks_that_return_something_else_than_logits_are_left_alone(last: nn.Module) -> None:
    nets = [member(m, last) for m in range(2)]
    inputs = torch.randn(100, 2)
    plan = ng.plan(nets, inputs[:2])
    target = ng.Ensemble(nets, "probabilities", weights=[2, 1])
    _, report = refit_and_report(ng.apply(plan, nets), plan, nets, [inputs], target=target)
    assert not any("cross-entropy" in note for note in report.notes)


def test_with_one_output_there_is_no_class_to_choose() -> None:
    nets = [nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)) for _ in range(2)]
    inputs = torch.randn(100, 2)
    plan = ng.plan(nets, inputs[:2])
    target = ng.Ensemble(nets, "probabilities", weights=[2, 1])
    _, report = refit_and_report(ng.apply(plan, nets), plan, nets, [inputs], target=target)
    assert not any("cross-entropy" in note for note in report.notes)
