"""Mappings of a study file, whose unknown keys are refused with the closest known ones."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from neurograft.errors import closest


class Strict(BaseModel):
    """A mapping whose unknown keys are refused with the closest known ones.

    Example:
        >>> class Circle(Strict):
        ...     radius: float
        >>> Circle.model_validate({"radios": 1})
        Traceback (most recent call last):
        ...
        pydantic_core._pydantic_core.ValidationError: 1 validation error for Circle
          unknown key radios; did you mean 'radius'? known: radius [type=unknown_key, input_value={'radios': 1}, ...
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    hint = closest(str(key), cls.model_fields)
                    raise PydanticCustomError("unknown_key", "unknown key {key}; {hint}", {"key": key, "hint": hint})
        return data
