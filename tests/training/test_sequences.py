"""Pruning, merging and tuning in any order."""

import copy

import pytest
import torch
from tests.fusion import planned
from tests.networks import build, example
from torch import nn

from neurograft.errors import OptionError
from neurograft.training.sequences import fuse_in_sequence


def states(*networks: nn.Module) -> list[dict[str, torch.Tensor]]:
    return [copy.deepcopy(network.state_dict()) for network in networks]


@pytest.mark.parametrize("network", ["mlp_bias", "mlp_layer_norm", "vgg_batch_norm", "resnet"])
@pytest.mark.parametrize(
    ("sequence", "named"), [(("merge", "prune"), "merge-prune"), (("prune", "merge"), "prune-merge")]
)
@pytest.mark.parametrize("order", ["backward", "joint"])
def test_without_tuning_a_sequence_is_an_option_of_transplant(
    network: str, sequence: tuple, named: str, order: str
) -> None:
    members = [build(network, seed).double() for seed in range(3)]
    x = example(network).double()
    found = fuse_in_sequence(members, x, sequence, order=order)
    expected = planned(members, x, sequence=named, order=order)
    assert [n for n, _ in found.named_parameters()] == [n for n, _ in expected.named_parameters()]
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("sequence", "widths"),
    [
        (("merge", "tune", "prune"), [32]),
        (("tune", "merge", "prune", "tune"), [16, 16, 16]),
        (("prune", "tune", "merge", "tune"), [8, 8, 16]),
    ],
)
def test_tuning_happens_where_the_sequence_says(sequence: tuple, widths: list[int]) -> None:
    members = [build("mlp_bias", seed) for seed in range(2)]
    before = states(*members)
    seen = []

    def tune(network: nn.Module) -> nn.Module:
        seen.append(network.layers[0].out_features)
        trained = copy.deepcopy(network)
        with torch.no_grad():
            trained.layers[0].bias += 1
        return trained

    fused = fuse_in_sequence(members, example("mlp_bias"), sequence, tune)
    assert seen == widths
    fused.load_state_dict(members[0].state_dict())
    for state, now in zip(before, states(*members), strict=True):
        assert all(torch.equal(state[name], now[name]) for name in state)


@pytest.mark.parametrize(
    ("sequence", "tune", "message"),
    [
        (("merge",), None, "sequence has 'prune' 0 times"),
        (("merge", "prune", "merge"), None, "sequence has 'merge' 2 times"),
        (("merge", "prunes"), None, "unknown step 'prunes'; did you mean 'prune'"),
        ("merge-prune", None, "sequence is a list of steps"),
        (("merge", "tune", "prune"), None, 'sequence has "tune": pass tune='),
    ],
)
def test_sequences_that_make_no_sense_are_refused(sequence: object, tune: object, message: str) -> None:
    members = [build("mlp_bias", seed) for seed in range(2)]
    with pytest.raises(OptionError, match=message):
        fuse_in_sequence(members, example("mlp_bias"), sequence, tune)
