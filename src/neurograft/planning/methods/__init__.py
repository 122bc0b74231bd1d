"""The fusion methods: one file each, one signature `(members, *, options) -> Filling`, one table."""

from collections.abc import Callable

from neurograft.planning.methods.average import average
from neurograft.planning.methods.optimal_transport import optimal_transport
from neurograft.planning.methods.permutation import permutation
from neurograft.planning.methods.transplant import transplant
from neurograft.planning.methods.zip import zip_neurons
from neurograft.planning.plan import Filling

METHODS: dict[str, Callable[..., Filling]] = {
    "average": average,
    "optimal_transport": optimal_transport,
    "permutation": permutation,
    "transplant": transplant,
    "zip": zip_neurons,
}
