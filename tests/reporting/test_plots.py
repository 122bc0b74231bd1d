import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest

from neurograft.reporting.palette import DARK, DASHES, LIGHT, palette_css
from neurograft.reporting.plots import Curve, accuracy_chart, spread


def points(svg):
    return [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in ElementTree.fromstring(svg).iter("polyline")
    ]


def test_higher_accuracy_is_higher_and_time_runs_right():
    (line,) = points(accuracy_chart([Curve("a", (0.1, 0.5, 0.9, 0.99))], title="t"))
    assert [x for x, _ in line] == sorted({x for x, _ in line})
    assert [y for _, y in line] == sorted({y for _, y in line}, reverse=True)


def test_halving_the_error_is_always_one_step():
    (line,) = points(accuracy_chart([Curve("a", (0.2, 0.6, 0.8, 0.9, 0.95))], title="t"))
    steps = [before - after for (_, before), (_, after) in itertools.pairwise(line)]
    assert steps == pytest.approx([steps[0]] * 4, abs=0.2)


def test_a_single_value_is_a_level_across():
    curve, level = points(accuracy_chart([Curve("a", (0.5, 0.6, 0.7)), Curve("b", (0.8,))], title="t"))
    assert [x for x, _ in level] == [x for x, _ in curve]
    assert len({y for _, y in level}) == 1


def test_perfect_and_hopeless_fit_on_the_chart():
    for y in (y for line in points(accuracy_chart([Curve("a", (0.0, 1.0))], title="t")) for _, y in line):
        assert 0 < y < 380


def test_names_are_text_and_the_best_value_is_written():
    svg = accuracy_chart([Curve("a<b", (0.5, 0.951, 0.9), chosen=1)], title='say "x"')
    texts = [element.text for element in ElementTree.fromstring(svg).iter("text")]
    assert "a<b 95.1" in texts
    assert len(list(ElementTree.fromstring(svg).iter("circle"))) == 1


def test_labels_keep_their_distance_and_their_order():
    places = spread([5.0, 5.0, 6.0, 30.0, 31.0], gap=10, low=0, high=60)
    assert all(after - before >= 10 for before, after in itertools.pairwise(places))
    assert places == sorted(places)
    assert places[-1] <= 60


def test_every_colour_has_a_dark_twin_and_a_dash():
    assert len(LIGHT) == len(DARK) == len(DASHES) == len(set(LIGHT)) == len(set(DARK)) == len(set(DASHES))
    assert len(re.findall(r"--c\d:", palette_css())) == 2 * len(LIGHT)


@pytest.mark.parametrize(("colours", "ground"), [(LIGHT, "#ffffff"), (DARK, "#12181c")], ids=["light", "dark"])
def test_colours_can_be_read_on_their_ground(colours, ground):
    def luminance(hexadecimal):
        parts = [int(hexadecimal[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in colours:
        low, high = sorted((luminance(colour), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 3, colour  # WCAG 2.1, 1.4.11: graphical objects
