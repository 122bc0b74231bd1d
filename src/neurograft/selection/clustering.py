"""Greedy clusters of neurons that respond alike, within and across members."""

import torch
from torch import Tensor

BLOCK = 1 << 22  # correlations looked at together: bounds what is there beside the covariances
BYTES_PER_PAIR = 8  # of neurons: one covariance in float64


def greedy_clusters(activations: Tensor, count: int) -> Tensor:
    """Merge the two clusters whose mean activations correlate most, until `count` clusters are left.

    The correlation of two clusters is that of the sums of their members' activations, kept exact by adding rows of
    the covariance matrix, the only matrix of all pairs that is kept. Neurons whose output is constant correlate
    with those of the same constant only.

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
    state = _Covariances(values.T @ values, means)
    for _ in range(activations.shape[1] - count):
        state.merge()
    numbers: Tensor = torch.unique(state.cluster, return_inverse=True)[1]
    return numbers


class _Covariances:
    """Covariances of the clusters so far; a cluster lives in the row of its first neuron."""

    def __init__(self, covariance: Tensor, means: Tensor) -> None:
        variances = covariance.diagonal()
        self.covariance, self.means = covariance, means
        self.cluster = torch.arange(len(means))
        self.gone = torch.zeros(len(means), dtype=torch.bool)
        self.still = variances <= 1e-12 * variances.max().clamp_min(torch.finfo(variances.dtype).tiny)
        self.best, self.partner = torch.empty_like(means), torch.empty_like(self.cluster)
        self._choose(self.cluster)

    def merge(self) -> None:
        """Merge the best pair."""
        one = int(self.best.argmax())
        first, second = sorted((one, int(self.partner[one])))
        self.cluster[self.cluster == second] = first
        self.covariance[first] += self.covariance[second]
        self.covariance[:, first] += self.covariance[:, second]
        self.still[first] &= self.still[second]
        self.gone[second] = True
        self.best[second] = -torch.inf
        stale = ((self.partner == first) | (self.partner == second)) & ~self.gone
        stale[first] = ~self.gone[first]
        self._choose(stale.nonzero().flatten())
        fresh = self._correlations(torch.tensor([first]))[0]
        better = fresh > self.best
        self.best[better] = fresh[better]
        self.partner[better] = first

    def _choose(self, rows: Tensor) -> None:
        """Find the partner of each of these clusters among all."""
        for some in torch.split(rows, max(1, BLOCK // len(self.means))):
            self.best[some], self.partner[some] = self._correlations(some).max(1)

    def _correlations(self, rows: Tensor) -> Tensor:
        """Of some clusters with all, shape `(rows, neurons)`; -inf where there is no other cluster."""
        variances = self.covariance.diagonal().clamp_min(0)
        scale = (variances[rows, None] * variances).sqrt_()
        found = self.covariance[rows] / scale.clamp_min_(torch.finfo(scale.dtype).tiny)
        if bool(self.still.any()):
            found[self.still[rows]] = 0
            found[:, self.still] = 0
            own, all_ = self.means[rows, None], self.means
            alike = (own - all_).abs() <= 1e-6 * torch.maximum(own.abs(), all_.abs())
            found[self.still[rows, None] & self.still & alike] = 1
        found[:, self.gone] = -torch.inf
        found[torch.arange(len(rows)), rows] = -torch.inf
        return found
