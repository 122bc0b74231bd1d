"""The strict test world, for the tests and for the examples in the docstrings."""

import os

# before torch is imported: each xdist worker gets one thread, the workers share the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random state, whatever ran before."""
    torch.manual_seed(0)
    numpy.random.seed(0)  # noqa: NPY002 - libraries under test still read the global state


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> None:
    """What several tests share is made from the same random state too, whichever of them comes first."""
    if fixturedef.scope != "function":
        torch.manual_seed(0)


@pytest.fixture
def float64():
    """Make new tensors float64, so that an identity can be tested to rounding."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def examples_namespace(doctest_namespace) -> None:
    """What examples may use without importing it."""
    doctest_namespace["torch"] = torch
