import itertools

from neurograft.reporting.figures import spread


def test_labels_keep_their_distance_and_their_order():
    places = spread([5.0, 5.0, 6.0, 30.0, 31.0], gap=10, low=0, high=60)
    assert all(after - before >= 10 for before, after in itertools.pairwise(places))
    assert places == sorted(places)
    assert places[-1] <= 60
