"""The base of every method's configuration: frozen, unknown keys refused, a sentence at each field."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from microtome.core.errors import InputError

# A CPU's generator looks at the lower 32 bits alone: larger seeds would draw what smaller ones draw.
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Config(BaseModel):
    """Settings of a method. Subclasses declare fields with `Field(default, description="…")`."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)

    @classmethod
    def read(cls, settings: dict[str, Any]) -> Self:
        """Build from plain values (a command line, a file). Raises `InputError` naming each bad field."""
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            problems = "; ".join(map(_told, error.errors()))
            unknown = any(e["type"] == "extra_forbidden" for e in error.errors())
            known = f". The fields are: {', '.join(cls.model_fields)}" if unknown else ""
            raise InputError(f"settings do not fit: {problems}{known}") from error


def _told(problem: Mapping[str, Any]) -> str:
    where = ".".join(map(str, problem["loc"]))
    said = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {said}" if where else said
