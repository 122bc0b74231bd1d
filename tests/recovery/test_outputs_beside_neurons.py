"""A layer that makes outputs and hidden neurons at once: its outputs are averaged, its neurons owned, in refit too."""

import pytest
import torch
from torch import Tensor, nn

import neurograft as ng


class Beside(nn.Module):
    """Three outputs and eight neurons from one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.head = nn.Linear(5, 11), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        direct, hidden = self.both(x).split([3, 8], -1)
        return direct + self.head(hidden.relu())


def test_refitting_a_network_with_its_copy_changes_nothing() -> None:
    model = Beside().double()
    x = torch.randn(300, 5, dtype=torch.double)
    with pytest.warns(UserWarning, match="this is member 0, hardly changed"):  # its copy adds nothing
        fused = ng.fuse([model, model], x, diversity=True, calibration=[x], recover="refit")
    torch.testing.assert_close(fused(x), model(x), rtol=1e-8, atol=1e-8)
