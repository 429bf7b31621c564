"""Typed YAML configuration: dataclass defaults < YAML files (with ``base:``) < dotlist overrides.

A component's dataclass stands beside its class. A group of alternatives (``quantizer: {learned: {...}}``) is a
dataclass whose fields are all optional and that derives from :class:`OneOf`; exactly one of them must be set, and a
later layer's choice clears what an earlier layer chose.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")
Layer = tuple[str, dict[str, Any]]  # (where it is written, plain mapping)


class ConfigError(ValueError):
    """A configuration that names an unknown key, has a value of the wrong type or makes no unique choice."""


@dataclass
class OneOf:
    """Base of a group of alternatives: every field is optional and exactly one is set."""

    def chosen(self) -> tuple[str, Any]:
        """The name and the value of the one alternative that is set.

        Raises:
            ConfigError: none or several are set.
        """
        names = [f.name for f in dataclasses.fields(self)]
        chosen = [name for name in names if getattr(self, name) is not None]
        if len(chosen) != 1:
            said = ", ".join(chosen) or "none"
            raise ConfigError(f"{type(self).__name__} must set exactly one of {', '.join(names)}; it sets {said}")
        return chosen[0], getattr(self, chosen[0])


def load(schema: type[T], path: str | Path | None = None, overrides: list[str] | tuple[str, ...] = ()) -> T:
    """Read a configuration.

    Args:
        schema: the dataclass to fill.
        path: a YAML file; its ``base:`` (one path or a list, relative to the file) is read before it.
        overrides: ``a.b=value`` strings, applied last.

    Raises:
        ConfigError: a missing file, an unknown key (with the nearest known one), a value of the wrong type, or a
            group of alternatives of which not exactly one is set.
    """
    return _build(schema, read_layers(path, overrides), path)


def load_section(path: str | Path, overrides: list[str] | tuple[str, ...], key: str, schema: type[T]) -> T:
    """One top-level section of a configuration, typed and checked as :func:`load` does, the rest left unread.

    For a program that needs a few values only and must not import every component to learn the whole schema.

    Raises:
        ConfigError: as :func:`load`; also where ``key`` is set nowhere and ``schema`` has no defaults of its own.
    """
    default = dataclasses.field(default_factory=schema) if dataclasses.is_dataclass(schema) else MISSING
    section = dataclasses.make_dataclass("Section", [(key, schema, default)])
    layers = [(origin, {key: layer[key]} if key in layer else {}) for origin, layer in read_layers(path, overrides)]
    if default is MISSING and not any(layer for _, layer in layers):
        raise ConfigError(f"{path} sets no '{key}'; add it there or give {key}=value")
    return getattr(_build(section, layers, path), key)


def read_layers(path: str | Path | None, overrides: list[str] | tuple[str, ...] = ()) -> list[Layer]:
    """What is asked for, layer by layer and unchecked: ``(where it is written, plain mapping)``, the lowest first."""
    layers = _yaml_layers(Path(path)) if path is not None else []
    return [*layers, ("command line", _dotlist(overrides))] if overrides else layers


def overlaid(config: T, layer: dict[str, Any], origin: str) -> T:
    """A configuration with some of its keys set anew, typed and checked as :func:`load` does.

    Args:
        config: stays as it is.
        layer: nested keys with their values.
        origin: where they are written, for an error.
    """
    return _build(type(config), [(origin, _plain(config)), (origin, layer)], origin)


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML text, unset alternatives left out; :func:`load` reads it back as it was."""
    return OmegaConf.to_yaml(OmegaConf.create(_plain(config)))


def changed_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys whose values differ between two plain configurations, in order."""
    names: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += changed_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}")
    return names


def read_plain(path: str | Path) -> dict[str, Any]:
    """A YAML mapping as plain dicts, unchecked."""
    return OmegaConf.to_container(OmegaConf.load(path), resolve=True)


def read_plain_text(text: str) -> dict[str, Any]:
    """The YAML of a mapping as plain dicts, unchecked."""
    return OmegaConf.to_container(OmegaConf.create(text), resolve=True)


def _build(schema: type[T], layers: list[Layer], path: str | Path | None) -> T:
    merged: dict[str, Any] = {}
    for origin, layer in layers:
        _check_keys(layer, schema, "", origin)
        merged = _overlay(merged, layer, schema)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), merged))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        reason = str(error).splitlines()[0]
        reason = "give a list, e.g. [one, other]" if "is not a ListConfig" in reason else reason
        raise ConfigError(f"{path or 'command line'}: bad value for '{key}': {reason}") from None
    _check_choices(config, "")
    return config


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        skip = isinstance(value, OneOf)
        items = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: _plain(item) for name, item in items if not (skip and item is None)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _yaml_layers(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise ConfigError(f"no config file {path}; the ready ones are in configs/")
    if path.resolve() in seen:
        raise ConfigError(f"{path}: its base: files lead back to itself")
    try:
        raw = OmegaConf.load(path)
    except Exception as error:  # yaml raises several unrelated types
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, DictConfig):
        raise ConfigError(f"{path} must hold a mapping of keys to values")
    layer = _resolved(raw, str(path))
    bases = layer.pop("base", [])
    layers: list[tuple[str, dict[str, Any]]] = []
    for base in [bases] if isinstance(bases, str) else bases:
        layers += _yaml_layers(path.parent / base, (*seen, path.resolve()))
    return [*layers, (str(path), layer)]


def _dotlist(overrides: list[str] | tuple[str, ...]) -> dict[str, Any]:
    for item in overrides:
        if "=" not in item:
            raise ConfigError(f"override '{item}' must look like key.sub=value")
    try:
        raw = OmegaConf.from_dotlist(list(overrides))
    except Exception as error:  # yaml again
        reason = " ".join(str(error).split())
        raise ConfigError(f"overrides {' '.join(overrides)} cannot be read: {reason}") from None
    return _resolved(raw, "command line")


def _resolved(raw: DictConfig, origin: str) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(raw, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{origin}: {str(error).splitlines()[0]}") from None


def _field_types(schema: type) -> dict[str, Any]:
    hints = typing.get_type_hints(schema)
    return {f.name: hints[f.name] for f in dataclasses.fields(schema)}


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass behind ``X``, ``X | None`` or None if there is none."""
    if dataclasses.is_dataclass(hint):
        return hint
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next((arg for arg in typing.get_args(hint) if dataclasses.is_dataclass(arg)), None)
    return None


def _items_of(hint: Any) -> type | None:
    """The dataclass that a ``list[X]`` or a ``dict[str, X]`` holds."""
    args = typing.get_args(hint)
    return _dataclass_in(args[-1]) if typing.get_origin(hint) in (list, dict) and args else None


def _check_keys(layer: dict[str, Any], schema: type, prefix: str, origin: str) -> None:
    known = _field_types(schema)
    for key, value in layer.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known here: {', '.join(known)}"
            raise ConfigError(f"{origin}: unknown key '{prefix}{key}'; {hint}")
        inner, items = _dataclass_in(known[key]), _items_of(known[key])
        if typing.get_origin(known[key]) is list and isinstance(value, dict):
            raise ConfigError(f"{origin}: bad value for '{prefix}{key}': a list is given whole, {prefix}{key}=[...]")
        if inner is not None and not isinstance(value, dict | None):
            holds = ", ".join(_field_types(inner))
            raise ConfigError(f"{origin}: bad value for '{prefix}{key}': {value!r} is no mapping; it holds {holds}")
        if inner is not None and value is not None:
            _check_keys(value, inner, f"{prefix}{key}.", origin)
        elif items is not None and isinstance(value, list | dict):
            pairs = enumerate(value) if isinstance(value, list) else value.items()
            for name, item in pairs:
                if isinstance(item, dict):
                    _check_keys(item, items, f"{prefix}{key}.{name}.", origin)


def _overlay(below: dict[str, Any], above: dict[str, Any], schema: type) -> dict[str, Any]:
    known = _field_types(schema)
    chosen = {key for key, value in above.items() if value is not None}
    keep = not (issubclass(schema, OneOf) and chosen)
    merged = {key: value for key, value in below.items() if keep or key in chosen}
    if not keep:  # the dataclass's own default is a choice too, and is cleared like an earlier layer's
        merged |= dict.fromkeys(known.keys() - chosen)
    for key, value in above.items():
        inner = _dataclass_in(known[key])
        if inner is not None and isinstance(value, dict):
            merged[key] = _overlay(merged.get(key) or {}, value, inner)
        elif known[key] == dict[str, Any] and isinstance(value, dict):
            merged[key] = _merged(merged.get(key) or {}, value)
        else:
            merged[key] = value
    return merged


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings of no known shape, the upper one's values before the lower one's."""
    out = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            out[key] = _merged(below[key], above[key])
    return out


def _check_choices(value: Any, prefix: str) -> None:
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_choices(item, f"{prefix}{index}.")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_choices(item, f"{prefix}{key}.")
    elif dataclasses.is_dataclass(value):
        if isinstance(value, OneOf):
            try:
                value.chosen()
            except ConfigError as error:
                raise ConfigError(f"'{prefix.rstrip('.')}': {error}") from None
        for f in dataclasses.fields(value):
            _check_choices(getattr(value, f.name), f"{prefix}{f.name}.")


def matching(names: list[str], glob: str, key: str, what: str = "parameter") -> list[str]:
    """The names of a model's parts that a glob of the setting ``key`` matches.

    Raises:
        ValueError: it matches none, with the names there are.
    """
    found = fnmatch.filter(names, glob)
    if not found:
        raise ValueError(f"{key}: '{glob}' matches no {what}; there are {', '.join(names[:6])}, …")
    return found
