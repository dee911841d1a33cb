"""Tools as models see them: a name, what it does, a JSON schema; and the checking of arguments."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

_Arguments = TypeVar("_Arguments", bound=BaseModel)


class Arguments(BaseModel):
    """Arguments of a tool; its docstring tells the model what the tool does."""

    model_config = ConfigDict(extra="forbid")


def schema_of(name: str, arguments: type[BaseModel]) -> dict[str, Any]:
    """Return a tool in the form that providers take."""
    parameters = arguments.model_json_schema()
    description = parameters.pop("description", "")
    parameters.pop("title", None)
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def understood(
    tools: Mapping[str, type[Arguments]], name: str, given: dict[str, Any]
) -> Arguments | str:
    """Return a call's checked arguments, or what to tell a model that called it wrongly."""
    if name not in tools:
        return f"there is no tool {name!r}; there are {', '.join(tools)}"
    found = parsed(tools[name], given)
    return f"not done: {found}" if isinstance(found, str) else found


def parsed(arguments: type[_Arguments], given: dict[str, Any]) -> _Arguments | str:
    """Return checked arguments, or in one line what is wrong with them."""
    try:
        return arguments.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "arguments"
        return f"{field}: {first['msg']}, got {str(first['input'])[:100]!r}"
