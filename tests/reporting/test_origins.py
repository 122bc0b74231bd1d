import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import torch

from neurograft.axes.maps import NeuronMap
from neurograft.reporting.origins import origins_picture, shares_of, strongest_sources


def selection(target, source, fused, member):
    return NeuronMap.selection(torch.tensor(target), torch.tensor(source), fused, member)


def test_a_selection_takes_whole_neurons():
    taken, given = shares_of(selection([1, 2], [3, 0], 4, 5))
    assert taken.tolist() == [0, 1, 1, 0]
    assert given.tolist() == [1, 0, 0, 1, 0]


def test_a_soft_map_takes_its_row_sums():
    matrix = torch.tensor([[0.25, 0.25], [0.0, 0.5]])
    taken, given = shares_of(NeuronMap(matrix, matrix))
    assert taken.tolist() == [0.5, 0.5]
    assert given.tolist() == [0.25, 0.75]


def rows(svg):
    """Per row (y, rounded) of the picture: the colours of its cells by their left edge."""
    found = {}
    for rect in ElementTree.fromstring(svg).iter("rect"):
        found.setdefault(float(rect.get("y")), {})[float(rect.get("x"))] = (rect.get("fill"), rect.get("opacity"))
    return [[cells[x] for x in sorted(cells)] for _, cells in sorted(found.items())]


def test_fused_strip_has_the_colours_of_its_owners():
    maps = (selection([0, 1], [0, 2], 3, 3), selection([2], [1], 3, 3))
    first, second, fused = rows(origins_picture(SimpleNamespace(owned=True, maps={"layer": maps})))
    assert [opacity for _, opacity in first] == ["1", "0.13", "1"]
    assert [opacity for _, opacity in second] == ["0.13", "1", "0.13"]
    assert [fill for fill, _ in fused] == ["var(--c0)", "var(--c0)", "var(--c1)"]


def test_mixed_neurons_are_stacked():
    half = torch.full((2, 2), 0.25)
    svg = origins_picture(SimpleNamespace(owned=True, maps={"layer": (NeuronMap(half, half), NeuronMap(half, half))}))
    heights = [float(rect.get("height")) for rect in ElementTree.fromstring(svg).iter("rect")]
    assert heights.count(14.0) == 4
    assert heights.count(7.0) == 4


def test_wide_groups_stay_small():
    n = 4000
    everything = NeuronMap.permutation(torch.arange(n))
    empty = NeuronMap.selection(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), n, n)
    assert len(origins_picture(SimpleNamespace(owned=True, maps={"layer": (everything, empty)}))) < 2000


def test_a_plan_that_moves_nothing_has_no_picture():
    assert origins_picture(SimpleNamespace(owned=True, maps={})) == ""


def test_aligned_strips_show_which_neuron_arrives():
    maps = (NeuronMap.permutation(torch.arange(3)), NeuronMap.permutation(torch.tensor([2, 0, 1])))
    first, second = rows(origins_picture(SimpleNamespace(owned=False, maps={"layer": maps})))
    faint, middle, strong = [opacity for _, opacity in first]
    assert float(faint) < float(middle) < float(strong) == 1
    assert [opacity for _, opacity in second] == [strong, faint, middle]


def test_soft_plans_show_the_strongest_source():
    matrix = torch.tensor([[0.2, 0.3], [0.4, 0.1]])
    assert strongest_sources(NeuronMap(matrix, matrix)) == [1, 0]
