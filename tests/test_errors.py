import inspect

import pytest

from neurograft import errors
from neurograft.errors import NeurograftError, closest

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, NeurograftError)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_is_drawn_in_the_tree(kind):
    lines = {line.lstrip(" │├└─").split(" ")[0]: line for line in errors.__doc__.splitlines()}
    assert kind.__name__ in lines
    assert kind.__doc__
    depth = (len(lines[kind.__name__]) - len(lines[kind.__name__].lstrip(" │├└─"))) // 4
    assert depth == kind.__mro__.index(NeurograftError)


def test_closest_names_come_first():
    assert closest("averag", ["transplant", "average"]) == "did you mean 'average'? known: average, transplant"


def test_no_name_is_close():
    assert closest("xyz", ["transplant", "average"]) == "known: average, transplant"


def test_bad_options_are_value_errors_for_those_who_catch_those():
    assert issubclass(errors.OptionError, ValueError)
    assert issubclass(errors.InputError, ValueError)
    assert issubclass(errors.MissingExtra, ImportError)
