"""A table of positions by channels whose axes are both made, and both zipped."""

import pytest
import torch
from torch import Tensor, nn

import neurograft as ng


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.channels, self.tokens = nn.Linear(5, 8), nn.Linear(4, 6)
        self.table = nn.Parameter(torch.randn(6, 8))
        self.head, self.last = nn.Linear(8, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(self.channels(x).transpose(1, 2)).transpose(1, 2) + self.table
        return self.last(self.head(x.relu()).transpose(1, 2))


@pytest.mark.parametrize("count", [2, 3])
def test_a_table_of_positions_by_channels_zipped_with_its_copies_is_itself(count: int) -> None:
    torch.manual_seed(0)
    net, x = Table().double(), torch.randn(30, 4, 5).double()
    assert {group.name for group in ng.trace(net, x).outermost} == {"table:0", "table:1"}
    fused = ng.fuse([net] * count, x, "zip", calibration=[x], recover=None)
    torch.testing.assert_close(fused(x), net(x))
