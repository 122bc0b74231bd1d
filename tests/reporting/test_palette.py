import re

import pytest

from neurograft.reporting.palette import DARK, DASHES, LIGHT, palette_css


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
