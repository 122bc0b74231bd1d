"""The fusion methods: one file each, one signature `(members, *, options) -> Filling`, one table."""

from collections.abc import Callable

from neurograft.planning.methods.average import average
from neurograft.planning.methods.transplant import transplant
from neurograft.planning.plan import Filling

METHODS: dict[str, Callable[..., Filling]] = {
    "average": average,
    "transplant": transplant,
}
