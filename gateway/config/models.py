"""What all configuration models share, and their mistakes told in the operator's words."""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from gateway.config.errors import KeyPath, closest, found, near_miss, shown
from gateway.config.yaml_nodes import Document, Scalar

_LISTS = ("list_type", "tuple_type")
_MAPPINGS = ("model_type", "model_attributes_type", "dict_type")


class Section(BaseModel):
    """A mapping whose keys are all known; one that is there but empty has its defaults."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_has_defaults(cls, value: Any) -> Any:
        return {} if value is None else value


def present() -> BeforeValidator:
    """For a section that may be left out: written, but empty, it is a mapping without keys, and not left out."""
    return BeforeValidator(lambda value: {} if value is None else value)


AnySection = TypeVar("AnySection", bound=Section)


def contradiction(key: KeyPath, message: str) -> PydanticCustomError:
    """A mistake between keys, told at ``key`` below the section that finds it."""
    return PydanticCustomError("contradiction", "{message}", {"message": message, "key": key})


def read_section(model: type[AnySection], document: Document) -> AnySection | None:
    """The document as a model; None, with the mistakes noted in the document, where it is not one."""
    if not document.is_readable:
        return None
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        misspelt = {(*path, meant) for path, meant in _near_misses(model, mistakes)}
        for details in mistakes:
            if details["type"] != "missing" or details["loc"] not in misspelt:  # one slip is one mistake
                _note(model, document, details)
        return None


def _near_misses(model: type[Section], mistakes: Iterable[ErrorDetails]) -> Iterator[tuple[KeyPath, str]]:
    """Where an unknown key stands, and which known key it is nearly."""
    for details in mistakes:
        *path, name = details["loc"] or ("",)
        if details["type"] == "extra_forbidden" and isinstance(name, str):
            for meant in closest(name, sorted(_keys(_model_at(model, tuple(path))))):
                yield tuple(path), meant


def _note(model: type[Section], document: Document, details: ErrorDetails) -> None:
    value, kind, path = details["input"], details["type"], details["loc"]
    if isinstance(value, Scalar) and value.unusable:
        return
    if path and path[-1] == "[key]":
        document.refuse(path[:-1], details["msg"], at_key=True)
    elif kind == "missing":
        document.refuse(path[:-1], f'missing key "{path[-1]}"')
    elif kind == "extra_forbidden":
        name = str(path[-1])
        known = sorted(_keys(_model_at(model, path[:-1])))
        hint = near_miss(name, known) or f", expected {'one of ' if len(known) > 1 else ''}{', '.join(known)}"
        document.refuse(path, f'unknown key "{shown(name)}"{hint}', at_key=True)
    elif kind == "contradiction":
        document.refuse((*path, *details["ctx"]["key"]), details["msg"])
    elif kind in _LISTS:
        document.refuse(path, f"expected a list, found {found(value)}")
    elif kind in _MAPPINGS:
        document.refuse(path, f"expected a mapping, found {found(value)}")
    else:
        document.refuse(path, details["msg"])


def _keys(model: type[BaseModel]) -> Iterator[str]:
    for name, entry in model.model_fields.items():
        yield entry.alias or name


def _model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel]:
    """The model that reads the mapping at ``path``."""
    for step in path:
        if isinstance(step, str) and (entry := _entry(model, step)) is not None:
            model = entry
    return model


def _entry(model: type[BaseModel], key: str) -> type[BaseModel] | None:
    for name, entry in model.model_fields.items():
        if (entry.alias or name) == key:
            return _model_in(entry.annotation)
    return None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in ``Model``, ``tuple[Model, ...]``, ``dict[str, Model]`` or ``Model | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part)) is not None), None)
