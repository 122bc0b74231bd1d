import xml.etree.ElementTree as ElementTree

import pytest

from neurograft.recovery.report import LayerRecovery, RecoveryReport
from neurograft.reporting.recovery import axis_end, recovery_picture, recovery_words


def report(*layers, recovery="refit", notes=()):
    return RecoveryReport(recovery, layers, 2000, 3, 1.25, notes)


def circles(svg):
    """Per layer, the places of its circles (ring first) along the axis of relative error, and its words."""
    found = []
    for group in ElementTree.fromstring(svg).iter("g"):
        texts = [text.text for text in group.iter("text")]
        found.append(([float(circle.get("cx")) for circle in group.iter("circle")], texts))
    return found


def test_the_ring_is_before_and_the_dot_after():
    svg = recovery_picture(report(LayerRecovery("a", "layer", 0.8, 0.2), LayerRecovery("b", "layer", 0.4, 0.4)))
    (moved, words), (kept, alone) = circles(svg)
    assert len(moved) == 2
    assert moved[0] > moved[1]
    assert words == ["a", "0.80 → 0.20"]
    assert len(kept) == 1
    assert alone == ["b", "0.40"]
    assert moved[1] < kept[0] < moved[0]


def test_errors_are_proportional_to_their_distance_from_zero():
    svg = recovery_picture(report(LayerRecovery("a", "layer", 0.8, 0.4), LayerRecovery("b", "layer", 0.8, 0.0)))
    (first, _), (second, _) = circles(svg)
    assert first[0] - first[1] == pytest.approx(first[1] - second[1], abs=0.2)


def test_one_axis_for_several_pictures():
    near, far = report(LayerRecovery("a", "layer", 0.4, 0.1)), report(LayerRecovery("a", "layer", 1.6, 0.1))
    end = axis_end([near, far])
    assert end == 1.6
    ((one, _),), ((two, _),) = circles(recovery_picture(near, end)), circles(recovery_picture(far, end))
    assert one[1] == two[1]
    assert one[0] < two[0]


def test_errors_beyond_the_axis_stay_on_the_picture_with_their_number():
    ((places, words),) = circles(recovery_picture(report(LayerRecovery("a", "layer", 37.5, 0.1))))
    assert max(places) <= 720
    assert words[1] == "37.50 → 0.10"


def test_layers_without_an_error_are_words():
    left_out = LayerRecovery("embed.weight", "left out", note="tied to an embedding")
    norm = LayerRecovery("norm", "statistics", rows=10)
    assert recovery_picture(report(left_out, norm)) == ""
    words = recovery_words(report(left_out, norm, notes=("2 layers have no bias and got the scale only",)))
    assert words == (
        "2,000 samples, 3 passes, 1.2 s. Left out: embed.weight (tied to an embedding). "
        "2 layers have no bias and got the scale only."
    )


def test_streams_have_another_colour_and_long_names_keep_their_end():
    name = "transformer.blocks.17.attention.projection.weight"
    svg = recovery_picture(report(LayerRecovery(name, "stream", 0.5, 0.1), LayerRecovery("a<b", "layer", 0.5, 0.1)))
    groups = list(ElementTree.fromstring(svg).iter("g"))
    hues = [next(group.iter("circle")).get("stroke") for group in groups]
    assert hues == ["var(--c1)", "var(--c0)"]
    assert next(groups[0].iter("title")).text == f"{name}, towards its stream"
    assert next(groups[0].iter("text")).text == "…" + name[-29:]


def test_the_number_of_layers_makes_the_height():
    layers = [LayerRecovery(f"layer.{i}", "layer", 0.5, 0.1) for i in range(40)]
    pictures = [ElementTree.fromstring(recovery_picture(report(*layers[:n]))) for n in (1, 40)]
    one, forty = (float(picture.get("viewBox").split()[3]) for picture in pictures)
    assert forty - one == 39 * 20
