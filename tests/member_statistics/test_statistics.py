"""What a member sends: its moments, its file, what is refused, and what is drawn from it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import neurograft as ng
from neurograft.errors import CheckpointError, InputError, MembersDiffer, OptionError
from neurograft.member_statistics.drawing import drawn_batches, noise_batches
from neurograft.member_statistics.input_moments import IntegerInput, RealInput
from neurograft.member_statistics.random_features import random_features
from neurograft.member_statistics.statistics import Statistics, check_statistics


class Tokens(nn.Module):
    """Takes tokens and a mask by name."""

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return (tokens * mask).float().sum(1, keepdim=True)


def images(n: int = 60, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, 6, 5, generator=torch.Generator().manual_seed(seed))


def of_images(**options: object) -> Statistics:
    return ng.statistics(nn.Flatten(), [(x, torch.zeros(len(x))) for x in torch.split(images(), 25)], **options)


def test_moments_and_range_are_those_of_the_samples() -> None:
    own, x = of_images(), images().flatten(1).double()
    moments = own.inputs["0"]
    assert isinstance(moments, RealInput)
    assert (own.samples, own.structure, moments.shape) == (60, "tensor", (2, 6, 5))
    torch.testing.assert_close(moments.mean.double(), x.mean(0), rtol=1e-5, atol=1e-6)
    covariance = (moments.factor.T @ moments.factor).double()
    torch.testing.assert_close(covariance, torch.cov(x.T, correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.low.double(), x.amin(0))
    torch.testing.assert_close(moments.high.double(), x.amax(0))
    features = random_features([images()]).double()
    torch.testing.assert_close(
        own.features.covariance.double(), torch.cov(features.T, correction=0), atol=1e-5, rtol=1e-4
    )


def test_drawn_inputs_have_the_moments_and_stay_in_the_range() -> None:
    own = of_images()
    moments = own.inputs["0"]
    assert isinstance(moments, RealInput)
    drawn = torch.cat(drawn_batches([own], samples=4000)).flatten(1)
    assert bool((drawn >= moments.low).all())
    assert bool((drawn <= moments.high).all())
    torch.testing.assert_close(drawn.mean(0), moments.mean, rtol=0, atol=0.15)
    assert torch.equal(drawn, torch.cat(drawn_batches([own], samples=4000)).flatten(1))


def test_of_every_member_as_many_as_its_share() -> None:
    nets = [nn.Linear(1, 1), nn.Linear(1, 1)]
    own = [
        ng.statistics(net, [torch.randn(n, 1) + shift]) for net, n, shift in zip(nets, (30, 10), (-50, 50), strict=True)
    ]
    drawn = torch.cat(drawn_batches(own, samples=200))
    assert int((drawn < 0).sum()) == 150
    assert 30 < int((drawn[:50] > 0).sum()) + 30 < 60  # mixed, not one member after the other


def test_whole_numbers_are_counted_and_drawn_by_frequency() -> None:
    tokens = torch.tensor([[5, 5, 9], [5, 7, 5]])
    batch = {"tokens": tokens, "mask": torch.ones_like(tokens, dtype=torch.bool)}
    own = ng.statistics(Tokens(), [batch])
    counted = own.inputs["tokens"]
    assert isinstance(counted, IntegerInput)
    assert (counted.values.tolist(), counted.counts.tolist()) == ([5, 7, 9], [4, 1, 1])
    drawn = drawn_batches([own], samples=900)
    assert isinstance(drawn[0], dict)
    assert drawn[0]["mask"].dtype == torch.bool
    seen = torch.cat([b["tokens"] for b in drawn])
    assert seen.shape == (900, 3)
    assert set(seen.flatten().tolist()) == {5, 7, 9}
    assert float((seen == 5).float().mean()) == pytest.approx(4 / 6, abs=0.05)


def test_wide_inputs_have_a_low_rank_and_a_diagonal() -> None:
    own = ng.statistics(nn.Identity(), [torch.randn(40, 3, 24, 24)])
    moments = own.inputs["0"]
    assert isinstance(moments, RealInput)
    assert moments.factor.shape[0] <= 40
    assert drawn_batches([own], samples=10)[0].shape == (10, 3, 24, 24)


@pytest.mark.parametrize("kind", ["images", "tokens", "noise"])
def test_a_file_holds_all_of_it(kind: str, tmp_path: Path) -> None:
    if kind == "tokens":
        own = ng.statistics(Tokens(), [{"tokens": torch.randint(9, (20, 4)), "mask": torch.ones(20, 4).bool()}])
    else:
        own = of_images(noise=(8.0, 1e-5)) if kind == "noise" else of_images()
    own.save(tmp_path / "own.safetensors")
    again = Statistics.load(tmp_path / "own.safetensors")
    assert (again.samples, again.structure, again.noise) == (own.samples, own.structure, own.noise)
    assert repr(again) == repr(own)
    assert torch.equal(again.features.covariance, own.features.covariance)
    assert again.features.noise == own.features.noise
    for name, moments in own.inputs.items():
        other = again.inputs[name]
        assert (other.shape, other.dtype) == (moments.shape, moments.dtype)
        assert all(torch.equal(getattr(other, part), getattr(moments, part)) for part in moments.TENSORS)


def test_another_checkpoint_is_no_statistics(tmp_path: Path) -> None:
    from neurograft.checkpoints import write_checkpoint

    write_checkpoint(nn.Linear(1, 1), tmp_path / "net.safetensors", {})
    with pytest.raises(CheckpointError, match="holds no statistics"):
        Statistics.load(tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"ends in \.safetensors"):
        of_images().save(tmp_path / "own.bin")


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "empty"),
        (iter([torch.zeros(1, 4)]), "one-shot"),
        ([torch.full((2, 4), torch.nan)], "NaN"),
        ([torch.zeros(2, 3)], "cannot take it"),
        ([torch.zeros(2, 4), torch.zeros(2, 5)], "before"),
        ([torch.zeros(2, 4), {"input": torch.zeros(2, 4)}], "other inputs"),
        ([torch.zeros(2, 4, dtype=torch.complex64)], "real or whole"),
    ],
)
def test_batches_that_make_no_sense_are_refused(batches: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ng.statistics(nn.Linear(4, 2), batches)  # type: ignore[arg-type]


def test_the_member_and_random_states_are_left_alone() -> None:
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout()).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    ng.statistics(net, [torch.randn(8, 4, generator=torch.Generator().manual_seed(0))], noise=(3.0, 1e-5))
    assert net.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_noise_hides_the_range_and_is_new_each_time() -> None:
    one, other = (of_images(noise=(8.0, 1e-5), clip=20.0) for _ in range(2))
    moments = one.inputs["0"]
    assert isinstance(moments, RealInput)
    assert bool((moments.low == -torch.inf).all())
    assert not torch.equal(one.features.mean, other.features.mean)
    assert one.noise == (8.0, 1e-5)
    assert torch.isfinite(torch.cat(drawn_batches([one, other], samples=50))).all()


def test_of_many_samples_noise_is_small() -> None:
    x = torch.randn(20_000, 2) * torch.tensor([1.0, 0.5]) + torch.tensor([0.3, 0.0])
    own = ng.statistics(nn.Linear(2, 1), [x], noise=(8.0, 1e-5), clip=8.0).inputs["0"]
    assert isinstance(own, RealInput)
    torch.testing.assert_close(own.mean, x.mean(0), rtol=0, atol=0.01)
    torch.testing.assert_close(own.factor.T @ own.factor, torch.cov(x.T), rtol=0, atol=0.03)


def test_noise_that_cannot_be_added_is_refused() -> None:
    with pytest.raises(OptionError, match="real numbers"):
        ng.statistics(nn.Embedding(9, 2), [torch.randint(9, (5, 3))], noise=(1.0, 1e-5))
    with pytest.raises(OptionError, match="more than 4096"):
        ng.statistics(nn.Identity(), [torch.randn(5, 3, 40, 40)], noise=(1.0, 1e-5))
    with pytest.raises(OptionError, match="clip"):
        ng.statistics(nn.Linear(2, 1), [torch.randn(5, 2)], clip=3.0)


def test_statistics_must_be_one_per_member_and_alike() -> None:
    one, wide = of_images(), ng.statistics(nn.Identity(), [torch.randn(5, 4)])
    with pytest.raises(MembersDiffer, match="1 statistics for 2 members"):
        check_statistics([one], 2)
    with pytest.raises(MembersDiffer, match=r"statistics\[1\] are of other inputs"):
        check_statistics([one, wide], 2)
    with pytest.raises(InputError, match="neurograft.statistics"):
        check_statistics([nn.Linear(1, 1)], 1)  # type: ignore[list-item]


def test_noise_batches_look_like_the_example() -> None:
    made = noise_batches({"x": torch.zeros(1, 3, dtype=torch.float64), "ids": torch.tensor([[4, 6]])}, samples=300)
    assert [batch["x"].shape for batch in made] == [(250, 3), (50, 3)]
    assert made[0]["x"].dtype == torch.float64
    assert set(made[0]["ids"].flatten().tolist()) == {4, 6}
