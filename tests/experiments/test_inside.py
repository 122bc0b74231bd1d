"""Pictures of what happened inside fused networks."""

import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import pytest
import torch

from neurograft.axes.maps import NeuronMap
from neurograft.recovery.report import LayerRecovery, RecoveryReport
from neurograft_experiments.inside import (
    FAINT,
    axis_end,
    origins_picture,
    recovery_picture,
    recovery_words,
    shares_of,
    strips,
    strongest_sources,
)
from neurograft_experiments.reports.figures import COLOURS, MARKERS, STYLES


def selection(target, source, fused, member):
    return NeuronMap.selection(torch.tensor(target), torch.tensor(source), fused, member)


def colour(index):
    return [int(COLOURS[index][i : i + 2], 16) / 255 for i in (1, 3, 5)]


def test_a_selection_takes_whole_neurons():
    taken, given = shares_of(selection([1, 2], [3, 0], 4, 5))
    assert taken.tolist() == [0, 1, 1, 0]
    assert given.tolist() == [1, 0, 0, 1, 0]


def test_a_soft_map_takes_its_row_sums():
    matrix = torch.tensor([[0.25, 0.25], [0.0, 0.5]])
    taken, given = shares_of(NeuronMap(matrix, matrix))
    assert taken.tolist() == [0.5, 0.5]
    assert given.tolist() == [0.25, 0.75]


def test_fused_strip_has_the_colours_of_its_owners():
    names, cells = strips((selection([0, 1], [0, 2], 3, 3), selection([2], [1], 3, 3)), owned=True)
    assert names == ["member 0: 2 of 3", "member 1: 1 of 3", "fused: 3"]
    assert cells[0, :, 3].tolist() == pytest.approx([1, FAINT, 1])
    assert cells[1, :, 3].tolist() == pytest.approx([FAINT, 1, FAINT])
    for cell, owner in zip(cells[2], (0, 0, 1), strict=True):
        assert cell.tolist() == pytest.approx([*colour(owner), 1])


def test_mixed_neurons_have_mixed_colours():
    half = torch.full((2, 2), 0.25)
    _, cells = strips((NeuronMap(half, half), NeuronMap(half, half)), owned=True)
    mixed = [(one + other) / 2 for one, other in zip(colour(0), colour(1), strict=True)]
    assert cells[2, 0, :3].tolist() == pytest.approx(mixed)


def test_aligned_strips_show_which_neuron_arrives():
    maps = (NeuronMap.permutation(torch.arange(3)), NeuronMap.permutation(torch.tensor([2, 0, 1])))
    names, cells = strips(maps, owned=False)
    assert names == ["from member 0", "from member 1"]
    faint, middle, strong = cells[0, :, 3].tolist()
    assert faint < middle < strong == 1
    assert cells[1, :, 3].tolist() == [strong, faint, middle]


def test_soft_plans_show_the_strongest_source():
    matrix = torch.tensor([[0.2, 0.3], [0.4, 0.1]])
    assert strongest_sources(NeuronMap(matrix, matrix)) == [1, 0]


def test_a_plan_that_moves_nothing_has_no_picture():
    assert list(origins_picture(SimpleNamespace(owned=True, maps={}), "nothing")) == []


def test_members_of_other_widths_are_in_one_picture():
    maps = (selection([0, 1], [0, 2], 3, 3), selection([2], [1], 3, 5))
    (picture,) = origins_picture(SimpleNamespace(owned=True, maps={"layer": maps, "other": maps}), "origins")
    assert picture.label == "origins"
    assert ElementTree.fromstring(picture.svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert strips(maps, owned=True)[1].shape == (3, 5, 4)


def report(*layers, recovery="refit", notes=()):
    return RecoveryReport(recovery, layers, 2000, 3, 1.25, notes)


def test_one_axis_for_several_pictures():
    near, far = report(LayerRecovery("a", "layer", 0.4, 0.1)), report(LayerRecovery("a", "layer", 1.6, 0.1))
    assert axis_end([near, far]) == 1.6
    assert axis_end([report(LayerRecovery("a", "layer", 37.5, 0.1))]) == 2.0


def test_layers_are_drawn_with_their_numbers(monkeypatch):
    monkeypatch.setitem(__import__("matplotlib").rcParams, "svg.fonttype", "none")  # text stays text
    name = "transformer.blocks.17.attention.projection.weight"
    layers = [LayerRecovery(name, "stream", 37.5, 0.2), LayerRecovery("a<b", "layer", 0.4, 0.4)]
    (picture,) = recovery_picture(report(*layers), 2.0, "errors")
    texts = [text.text for text in ElementTree.fromstring(picture.svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"37.50 → 0.20", "0.40", "…" + name[-29:], "a<b", "relative error"} <= set(texts)
    assert COLOURS[1].encode() in picture.svg


def test_layers_without_an_error_are_words():
    left_out = LayerRecovery("embed.weight", "left out", note="tied to an embedding")
    norm = LayerRecovery("norm", "statistics", rows=10)
    assert list(recovery_picture(report(left_out, norm), 1.0, "nothing")) == []
    words = recovery_words(report(left_out, norm, notes=("2 layers have no bias and got the scale only",)))
    assert words == (
        "2,000 samples, 3 passes, 1.2 s. Left out: embed.weight (tied to an embedding). "
        "2 layers have no bias and got the scale only."
    )


def test_colours_differ_and_can_be_read_on_white():
    def luminance(hexadecimal):
        parts = [int(hexadecimal[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert len(set(COLOURS)) == len(set(STYLES)) == len(COLOURS) == len(MARKERS) - 1
    for hexadecimal in COLOURS:
        assert 1.05 / (luminance(hexadecimal) + 0.05) >= 3, hexadecimal  # WCAG 2.1, 1.4.11: graphical objects
