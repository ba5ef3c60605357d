"""What is wrong with a suite file, in plain sentences: pydantic finds it, users need not know."""

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from sipp_bench.machine.registry import unknown

_WRONG_TYPE = {
    "string_type": "must be text in quotes",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "tuple_type": "must be a list in [ ]",
    "model_type": "must be a table",
}


def describe(problem: ErrorDetails, tables: dict[str, type[BaseModel]]) -> str:
    """Put one of pydantic's errors: key, entry of a list (counted from 1), what is wrong, what is allowed.

    tables: the table that each key of the file's top level holds, "" for the top level itself.
    """
    location = problem["loc"]
    key = ".".join(part for part in location if isinstance(part, str))
    entries = "".join(f" (entry {part + 1})" for part in location if isinstance(part, int))
    where = f"key {key}{entries}: " if location else ""  # what is wrong with keys together is at none of them
    return f"{where}{_what(problem, key, tables)}".rstrip(".") + "."


def _what(problem: ErrorDetails, key: str, tables: dict[str, type[BaseModel]]) -> str:
    kind = problem["type"]
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    if kind == "extra_forbidden":
        top, _, name = key.rpartition(".")
        allowed = (field.alias or name for name, field in tables[top].model_fields.items())
        return unknown(name, allowed, "key")
    if kind == "missing":
        table = f" at least one [[{key}]], or the suite has no cells" if key in tables else " it"
        return f"is missing; add{table}"
    return f"{_WRONG_TYPE.get(kind, problem['msg'])}, not {_shown(problem['input'])}"


def _shown(value: object, most: int = 300) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python does not write out numbers of more than some thousand digits
        return "a number of thousands of digits"
    return text if len(text) <= most else f"{text[:most]}..."
