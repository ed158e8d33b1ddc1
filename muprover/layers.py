"""Settings laid over each other: a game's own, those of a file, single ones of a command line; and
what is wrong with them, in words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import pydantic

from muprover.config import (
    Config,
    CustomNetworkConfig,
    MLPConfig,
    ResNetConfig,
    SettingsError,
)


def load_settings(base: Config, layers: Iterable[Mapping[str, Any]]) -> Config:
    """`base` with nested `layers` laid over it, later ones above; raises `SettingsError`."""
    tree = base.model_dump()
    for layer in layers:
        _merge(tree, layer)
    try:
        return Config.model_validate(tree)
    except pydantic.ValidationError as error:
        raise SettingsError("\n".join(_explain(e, tree) for e in error.errors())) from None


def parse_override(text: str) -> dict[str, Any]:
    """The layer that `search.num_simulations=50` stands for; the value is read as YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise SettingsError(f"given '{text}'; a setting is set as path.to.setting=value")
    try:
        node = _parse_yaml(value)
    except ValueError:
        node = value
    for name in reversed(path.strip().split(".")):
        node = {name: node}
    return dict(node)


def load_file(path: str) -> dict[str, Any]:
    """The layer that a YAML (or JSON) settings file holds."""
    try:
        with open(path, encoding="utf-8") as file:
            tree = _parse_yaml(file.read()) or {}
    except OSError as error:
        raise SettingsError(f"cannot read settings file {path}: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"settings file {path} is no YAML: {error}") from None
    if not isinstance(tree, dict):
        raise SettingsError(f"settings file {path} must be a tree of settings, like `search: …`")
    return tree


def _parse_yaml(text: str) -> Any:
    """What a text says; raises `ValueError` if it is no YAML."""
    import yaml  # only where text is read

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None
    except (LookupError, AttributeError, TypeError) as error:  # of values with a wrong !!tag
        raise ValueError(f"a value is not what its tag says ({error})") from None


def _merge(tree: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for name, value in layer.items():
        below = tree.get(name)
        if isinstance(below, dict) and isinstance(value, Mapping):
            kind = value.get("type", below.get("type"))
            if kind != below.get("type"):  # another kind of network starts from its own defaults
                tree[name] = dict(value)
            else:
                _merge(below, value)
        else:
            tree[name] = dict(value) if isinstance(value, Mapping) else value


def _explain(error: Any, tree: Mapping[str, Any]) -> str:
    """One sentence for a pydantic error: what was given and what is allowed."""
    kinds = {"mlp", "resnet", "custom"}
    location = [str(part) for part in error["loc"] if part not in kinds]
    path = ".".join(location)
    if error["type"] == "extra_forbidden":
        network = tree.get("network")
        kind = network.get("type") if isinstance(network, Mapping) else None
        known = setting_paths(kind if kind in kinds else "mlp")
        near = difflib.get_close_matches(path, known, 1, 0.6)
        hint = f"; did you mean `{near[0]}`?" if near else "; `muprover config` lists all settings"
        return f"no setting `{path}`{hint}"
    given = error.get("input")
    shown = "" if isinstance(given, Mapping) else f", given {repr(given)[:200]}"
    return f"setting `{path}`: {error['msg'].removeprefix('Value error, ')}{shown}"


def setting_paths(network_type: str = "mlp") -> list[str]:
    """The dotted path of every setting, with the options of one type of network."""
    networks = {"mlp": MLPConfig, "resnet": ResNetConfig, "custom": CustomNetworkConfig}

    def walk(model: type[pydantic.BaseModel], prefix: str) -> list[str]:
        paths = []
        for name, field in model.model_fields.items():
            kind: Any = (
                networks.get(network_type, MLPConfig) if prefix + name == "network" else None
            )
            kind = kind or next(
                (
                    t
                    for t in (field.annotation, *getattr(field.annotation, "__args__", ()))
                    if isinstance(t, type) and issubclass(t, pydantic.BaseModel)
                ),
                None,
            )
            paths.append(prefix + name)
            if kind is not None:
                paths += walk(kind, f"{prefix}{name}.")
        return paths

    return walk(Config, "")
