"""What reports read of a result row, checked: files get damaged, and rows come from other computers."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from neurograft.escaping import named

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Number: TypeAlias = Annotated[float, Field(ge=-1e15, le=1e15)]
Count: TypeAlias = Annotated[int, Field(ge=0, le=10**15)]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _StoredScores(_Checked):
    accuracy: Share
    samples: Annotated[Count, Field(gt=0)]


class _Hardware(_Checked):
    cpu: str
    cores: Count | None
    threads: Count
    system: str
    gpu: str | None = None


class _Member(_Checked):
    key: str


class _StoredImages(_Checked):
    samples: Count | None = None


class _StoredStart(_Checked):
    method: str = ""


class _Configuration(_Checked):
    data: _StoredImages | None = None
    members: list[_Member] = []
    start: _StoredStart | None = None


class StoredRow(_Checked):
    """The fields of a result row that reports read; all others are taken as they are."""

    key: str
    row: str
    test: _StoredScores | None = None
    validation: _StoredScores | None = None
    curve: list[Share] = []
    epoch: Count = 0
    lr: Number | None = None
    tried: list[Annotated[list[Share | None], Field(min_length=2, max_length=2)]] | None = None
    training: Count = 0
    seconds: dict[str, Number | None] = {}
    configuration: _Configuration = _Configuration()
    commit: str
    versions: dict[str, str]
    hardware: _Hardware

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.test is None) != (self.validation is None):
            raise ValueError("scores on one of validation and test images only")
        if self.validation is not None and not self.epoch < len(self.curve):
            raise ValueError("the chosen epoch is not in the curve")
        return self


class StoredFailure(_Checked):
    """Why a trial has no row."""

    key: str
    label: str
    error: str


def entry_of(text: bytes, model: type[BaseModel]) -> Mapping[str, Any]:
    """A line of a file, or an entry of a database, as it was written.

    Raises:
        ValueError: it is damaged; with what is wrong in a few words.

    Example:
        >>> entry_of(b'{"key": "a", "row": "aver', StoredRow)
        Traceback (most recent call last):
        ...
        ValueError: torn, or no JSON
    """
    try:
        entry: Mapping[str, Any] = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError("no UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("torn, or no JSON") from error
    try:
        model.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(named(f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": "))) from error
    except UnicodeEncodeError as error:
        raise ValueError("a name with half a surrogate pair") from error
    return entry
