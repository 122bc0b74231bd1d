"""Running statistics are exactly those of all samples, whatever the batches."""

import copy

import pytest
import torch
from tests.networks import build
from torch import nn

import neurograft as ng
from neurograft.errors import InputError

NORMS = {
    "1d": (nn.BatchNorm1d, (30, 4)),
    "1d_sequence": (nn.BatchNorm1d, (30, 4, 5)),
    "2d": (nn.BatchNorm2d, (30, 4, 3, 2)),
    "3d": (nn.BatchNorm3d, (30, 4, 2, 3, 2)),
    "sync": (nn.SyncBatchNorm, (30, 4, 3, 2)),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("sizes", [[30], [10, 10, 10], [1, 7, 22]])
def test_statistics_are_those_of_all_samples(name: str, sizes: list[int]) -> None:
    make, shape = NORMS[name]
    x = 3 * torch.randn(*shape, dtype=torch.float64) + 5
    better = ng.reestimate_batch_norm(make(4).double(), list(x.split(sizes)))
    rows = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(better.running_mean, rows.mean(1))
    torch.testing.assert_close(better.running_var, rows.var(1))


def test_one_batch_makes_eval_mode_give_what_training_mode_gives() -> None:
    net = build("resnet", 1).double()
    x = torch.randn(40, 3, 8, 8, dtype=torch.float64)
    better = ng.reestimate_batch_norm(net, [x])
    reference = copy.deepcopy(net).train()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    reference(x)
    for (name, found), expected in zip(better.named_buffers(), reference.buffers(), strict=True):
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(found, expected)


def test_nothing_else_changes() -> None:
    net = build("vgg_batch_norm")
    net.train()
    net.features[1].eval()
    before = copy.deepcopy(net.state_dict())
    better = ng.reestimate_batch_norm(net, [torch.randn(8, 3, 8, 8)])
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [m.training for m in better.modules()] == [m.training for m in net.modules()]
    changed = {name for name, value in better.state_dict().items() if not torch.equal(before[name], value)}
    assert changed
    assert all(name.endswith(("running_mean", "running_var")) for name in changed)


def test_a_network_without_batch_norm_is_copied() -> None:
    net = build("mlp")
    better = ng.reestimate_batch_norm(net, [torch.randn(4, 12)])
    assert better is not net
    assert all(torch.equal(a, b) for a, b in zip(better.parameters(), net.parameters(), strict=True))


def test_labels_are_left_out() -> None:
    net, x = build("mlp_batch_norm"), torch.randn(8, 12)
    plain = ng.reestimate_batch_norm(net, [x])
    labelled = ng.reestimate_batch_norm(net, [(x, torch.zeros(8, dtype=torch.long))])
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), labelled.buffers(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain.buffers(), net.buffers(), strict=True))


BAD = {
    "empty": ([], "are empty"),
    "one_shot": ((x for x in [torch.randn(4, 12)]), "one-shot"),
    "shape": ([torch.randn(4, 11)], r"batches\[0\].*cannot take"),
    "nan": ([torch.full((4, 12), torch.nan)], r"batches\[0\] holds NaN"),
    "no_samples": ([torch.randn(0, 12)], "no samples"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_batches_are_refused(name: str) -> None:
    batches, message = BAD[name]
    with pytest.raises(InputError, match=message):
        ng.reestimate_batch_norm(build("mlp_batch_norm"), batches)
