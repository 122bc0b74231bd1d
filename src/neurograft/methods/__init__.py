"""The fusion methods: one file each, one signature `(members, *, options) -> Filling`, one table."""

from collections.abc import Callable

from neurograft.methods.average import average
from neurograft.methods.optimal_transport import optimal_transport
from neurograft.methods.permutation import permutation
from neurograft.methods.transplant import transplant
from neurograft.methods.zip import zip_neurons
from neurograft.plans.plan import Filling

METHODS: dict[str, Callable[..., Filling]] = {
    "average": average,
    "optimal_transport": optimal_transport,
    "permutation": permutation,
    "transplant": transplant,
    "zip": zip_neurons,
}
