"""Greedy clusters of neurons that answer alike, within and across members."""

import torch
from torch import Tensor


def greedy_clusters(activations: Tensor, count: int) -> Tensor:
    """Merge the two clusters whose mean activations correlate most, until `count` clusters are left.

    The correlation of two clusters is that of the sums of their members' activations, kept exact by adding rows of
    the covariance matrix. Neurons that always answer the same correlate with those that give the same answer only.

    Args:
        activations: one column per neuron, shape `(samples, neurons)`.
        count: how many clusters to leave, 1 … neurons.

    Returns:
        The cluster of every neuron, shape `(neurons,)`, int64; clusters are numbered by their first neuron.

    Example:
        >>> x = torch.tensor([[1.0, 5.0, 2.0], [2.0, 1.0, 4.1], [3.0, 4.0, 5.9]])
        >>> greedy_clusters(x, 2)
        tensor([0, 1, 0])

    Source: Stoica et al. 2023, arXiv:2305.03053, section 4 (zip: greedy matching within and across models).
    """
    values = activations.double()
    means = values.mean(0)
    values = values - means
    covariance = values.T @ values
    state = _State(covariance, _still(covariance, means))
    for _ in range(covariance.shape[0] - count):
        state.merge()
    numbers: Tensor = torch.unique(state.cluster, return_inverse=True)[1]
    return numbers


def _still(covariance: Tensor, means: Tensor) -> Tensor:
    """1 where two neurons both never move and give the same answer, shape `(neurons, neurons)`."""
    variances = covariance.diagonal()
    dead = variances <= 1e-12 * variances.max().clamp_min(torch.finfo(variances.dtype).tiny)
    alike = (means[:, None] - means).abs() <= 1e-6 * torch.maximum(means[:, None].abs(), means.abs())
    return (dead[:, None] & dead & alike).to(covariance)


class _State:
    """Covariances and correlations of the clusters so far; a cluster lives in the row of its first neuron."""

    def __init__(self, covariance: Tensor, still: Tensor) -> None:
        self.covariance = covariance
        self.cluster = torch.arange(covariance.shape[0])
        deviation = covariance.diagonal().clamp_min(0).sqrt()
        scale = deviation[:, None] * deviation
        self.correlation = torch.where(scale > 0, covariance / scale.clamp_min(torch.finfo(scale.dtype).tiny), 0.0)
        self.correlation = torch.maximum(self.correlation, still).fill_diagonal_(-torch.inf)
        self.best, self.partner = self.correlation.max(1)

    def merge(self) -> None:
        """Merge the best pair."""
        one = int(self.best.argmax())
        first, second = sorted((one, int(self.partner[one])))
        self.cluster[self.cluster == second] = first
        self.covariance[first] += self.covariance[second]
        self.covariance[:, first] += self.covariance[:, second]
        self._correlate(first)
        self.correlation[second] = self.correlation[:, second] = -torch.inf
        self.best[second] = -torch.inf
        self._choose_again(first, second)

    def _correlate(self, row: int) -> None:
        gone = self.correlation[row].isinf()
        variances = self.covariance.diagonal().clamp_min(0)
        scale = (variances * variances[row]).sqrt()
        fresh = torch.where(
            scale > 0, self.covariance[row] / scale.clamp_min(torch.finfo(scale.dtype).tiny), self.correlation[row]
        )
        fresh[gone] = -torch.inf
        self.correlation[row] = self.correlation[:, row] = fresh

    def _choose_again(self, first: int, second: int) -> None:
        stale = (self.partner == first) | (self.partner == second)
        stale[first] = True
        stale &= self.best > -torch.inf
        rows = stale.nonzero().flatten()
        self.best[rows], self.partner[rows] = self.correlation[rows].max(1)
        better = self.correlation[:, first] > self.best
        better[second] = False
        self.best[better] = self.correlation[better, first]
        self.partner[better] = first
