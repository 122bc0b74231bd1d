import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import neurograft as ng
from neurograft.errors import InputError


def network():
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def batches():
    x = torch.randn(48, 2, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16, shuffle=True)


def test_the_seed_decides_everything():
    first = ng.train(network, batches(), epochs=2, seed=3)
    torch.manual_seed(12345)
    again, other = (ng.train(network, batches(), epochs=2, seed=seed) for seed in (3, 4))
    torch.testing.assert_close(again.state_dict(), first.state_dict(), rtol=0, atol=0)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_it_is_finetuning_of_first_weights_drawn_from_the_seed():
    torch.manual_seed(3)
    expected = ng.finetune(network(), batches(), epochs=2, seed=3)
    trained = ng.train(network, batches(), epochs=2, seed=3)
    torch.testing.assert_close(trained.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_the_caller_s_random_state_is_untouched():
    before = torch.get_rng_state()
    ng.train(network, batches(), epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_learns():
    assert ng.evaluate(ng.train(network, batches(), epochs=30, lr=0.1), batches()).accuracy > 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (network(), "make is a Sequential: train builds the network itself"),
        (3, "make is a int: train builds the network itself"),
        (lambda: None, "what make gives is a NoneType, not a torch.nn.Module"),
    ],
    ids=["network", "number", "nothing"],
)
def test_what_builds_no_network(make, message):
    with pytest.raises(InputError, match=message):
        ng.train(make, batches())
