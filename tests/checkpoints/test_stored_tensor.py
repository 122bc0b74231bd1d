"""A tensor in a file acts as one in memory, reads no more than is asked for, and never ends the process."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from neurograft.checkpoints import open_checkpoint
from neurograft.checkpoints.stored_tensor import Entry
from neurograft.errors import CheckpointError


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(7, 5, generator=generator),
        "half": torch.randn(6, 2, 3, generator=generator).bfloat16(),
        "vector": torch.arange(9),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
    }


@pytest.fixture(scope="module")
def stored(tensors, tmp_path_factory) -> dict[str, Tensor]:
    path = tmp_path_factory.mktemp("stored") / "a.safetensors"
    save_file(tensors, path)
    return dict(open_checkpoint(path).tensors)


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """The numbers of bytes that were read."""
    counts: list[int] = []
    reading = Entry.read_into

    def counted(entry, pieces):
        counts.append(sum(len(piece) for _, piece in pieces))
        reading(entry, pieces)

    monkeypatch.setattr(Entry, "read_into", counted)
    return counts


OPERATIONS = {
    "clone": lambda t: t.clone(),
    "a slice": lambda t: t[1:3],
    "to the end": lambda t: t[2:],
    "from behind": lambda t: t[-2:],
    "beyond": lambda t: t[2:1000],
    "nothing": lambda t: t[3:3],
    "backwards": lambda t: t[4:2],
    "every other": lambda t: t[::2],
    "one row": lambda t: t[1],
    "the last": lambda t: t[-1],
    "all": lambda t: t[...],
    "columns": lambda t: t[:, 1:3],
    "parts": lambda t: t[1::2, ::2],
    "few of many": lambda t: t[::1000],
    "none of many": lambda t: t[5:2:3, 1:],
    "as a tuple": lambda t: t[(slice(None, None, 3),)],
    "some rows": lambda t: t[torch.tensor([4, 0, 0, 2])],
    "rows from behind": lambda t: t[torch.tensor([-1, 0])],
    "no rows": lambda t: t[torch.tensor([], dtype=torch.long)],
    "rows by truth": lambda t: t[torch.arange(len(t)) % 2 == 0],
    "selected": lambda t: t.index_select(0, torch.tensor([1, 1, 3])),
    "selected columns": lambda t: t.index_select(-1, torch.tensor([0])),
    "selected as": lambda t: torch.index_select(t, 0, torch.tensor([2])),
    "narrow": lambda t: t.narrow(0, 1, 2),
    "flat": lambda t: t.reshape(-1)[3:5],
    "flattened": lambda t: t.flatten().double().sum(),
    "as a view": lambda t: t.view(-1),
    "bytes": lambda t: t.contiguous().view(torch.uint8).sum(),
    "detached": lambda t: t.detach() * 2,
    "arithmetic": lambda t: 2 - t / 3,
    "stacked": lambda t: torch.stack([t, t]),
    "written to": lambda t: t.clone().add_(t),
    "into another": lambda t: torch.zeros(t.shape, dtype=t.dtype).copy_(t),
    "equal": lambda t: torch.tensor(torch.equal(t, t)),
    "numbers": lambda t: torch.tensor(t.tolist()),
    "numpy": lambda t: torch.from_numpy(t.float().numpy()),
    "shown": lambda t: torch.tensor([*repr(t).encode()]),
    "pickled": lambda t: pickle.loads(pickle.dumps(t)),
    "copied": lambda t: copy.deepcopy(t),
    "keywords": lambda t: torch.sum(t, dim=0, dtype=torch.float64),
    "transposed": lambda t: t.T if t.dim() == 2 else t,
    "norm": lambda t: torch.linalg.vector_norm(t.double()),
    "rows one by one": lambda t: torch.stack(list(t)),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", ["matrix", "half", "vector"])
@pytest.mark.filterwarnings("ignore:The use of `x.T`")
def test_operations_are_those_of_tensors_in_memory(tensors, stored, name, operation):
    try:
        expected = OPERATIONS[operation](tensors[name])
    except IndexError:
        with pytest.raises(IndexError):
            OPERATIONS[operation](stored[name])
        return
    found = OPERATIONS[operation](stored[name])
    torch.testing.assert_close(found.clone(), expected, rtol=0, atol=0)


def test_shape_and_kind_are_there_without_reading(tensors, stored, read):
    for name, expected in tensors.items():
        found = stored[name]
        assert isinstance(found, Tensor)
        for describe in (
            lambda t: (t.shape, t.dtype, t.device, t.layout, t.ndim, t.nbytes, t.dim(), t.numel(), t.stride()),
            lambda t: (t.is_floating_point(), t.is_complex(), t.is_contiguous(), t.is_meta, t.requires_grad),
        ):
            assert describe(found) == describe(expected)
        found.detach()
    assert read == []


def test_rows_are_read_alone(tensors, stored, read):
    row = 5 * 4
    assert torch.equal(stored["matrix"][2:4], tensors["matrix"][2:4])
    assert torch.equal(stored["matrix"][torch.tensor([3, 2])], tensors["matrix"][[3, 2]])
    assert torch.equal(stored["matrix"].reshape(-1)[1:3], tensors["matrix"].flatten()[1:3])
    assert read == [2 * row, 2 * row, 8]


def test_parts_are_read_in_blocks_of_rows(tmp_path, monkeypatch, read):
    monkeypatch.setattr("neurograft.checkpoints.stored_tensor.SPAN", 40_000)
    large = torch.arange(300 * 100, dtype=torch.float32).view(300, 100)
    save_file({"large": large}, tmp_path / "a.safetensors")
    found = open_checkpoint(tmp_path / "a.safetensors").tensors["large"]
    assert torch.equal(found[:, ::7], large[:, ::7])
    assert read == [40_000, 40_000, 40_000]
    assert torch.equal(found[::30, 1:], large[::30, 1:])
    assert max(read) == 40_000


def test_scattered_rows_of_a_large_tensor_are_read_one_by_one(tmp_path, read):
    large = torch.arange(3000 * 5000, dtype=torch.float32).view(3000, 5000)
    save_file({"large": large}, tmp_path / "a.safetensors")
    found = open_checkpoint(tmp_path / "a.safetensors").tensors["large"]
    index = torch.tensor([2999, 4, 5, 6, 0, 4])
    assert torch.equal(found[index], large[index])
    assert read == [6 * 5000 * 4]


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_rows(tensors, stored, data):
    name = data.draw(st.sampled_from(["matrix", "half", "vector"]))
    index = torch.tensor(data.draw(st.lists(st.integers(0, 5), min_size=1)))
    assert torch.equal(stored[name][index], tensors[name][index])


def test_nothing_is_ever_written_to_the_file(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    found = open_checkpoint(tmp_path / "a.safetensors").tensors["a"]
    before = (tmp_path / "a.safetensors").read_bytes()
    layer = nn.Linear(3, 1, bias=False)
    layer.load_state_dict({"weight": found.view(1, 3)})
    found[0:2].zero_()
    assert (tmp_path / "a.safetensors").read_bytes() == before
    assert torch.equal(found, torch.ones(3))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:200]), r"changed from \d+ to 200 bytes while it was read"),
        (lambda path: path.write_bytes(b""), r"changed from \d+ to 0 bytes while it was read"),
        (lambda path: path.unlink(), "cannot be read: No such file"),
        (
            lambda path: path.with_name("b").write_bytes(path.read_bytes()) and path.with_name("b").replace(path),
            "changed",
        ),
    ],
    ids=["cut", "emptied", "gone", "replaced"],
)
def test_files_that_change_while_they_are_read(tmp_path, suffix, change, message):
    path, tensor = tmp_path / f"a.{suffix}", torch.ones(5000, 20)
    save_file({"a": tensor}, path) if suffix == "safetensors" else torch.save({"a": tensor}, path)
    found = open_checkpoint(path).tensors["a"]
    assert torch.equal(found[:10], tensor[:10])
    change(path)
    for use in (lambda: found[:10], lambda: found + 1, lambda: found[torch.tensor([4999, 0])]):
        with pytest.raises(CheckpointError, match=rf"a.{suffix} {message}"):
            use()


def test_a_file_that_is_cut_between_two_reads(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(5000, 20)}, path)
    found = open_checkpoint(path).tensors["a"]
    monkeypatch.setattr("neurograft.checkpoints.stored_tensor.check_stamp", lambda *_: path.write_bytes(b"x" * 200))
    with pytest.raises(CheckpointError, match="a.safetensors shrank while it was read: a is not whole"):
        found.sum()
