"""Files of a configuration as YAML: keys and overrides, and feature definitions in files of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from uplift_spark.errors import ConfigError


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Keys of a file, those of `overrides` (`dotted.key=value`, the value as YAML) in place of its own.

    Raises ConfigError naming the file or the override.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"configuration {path} must be a mapping of keys, not {type(raw).__name__}")
    for override in overrides:
        _override(raw, override)
    return raw


def read_features(entries: Any, conf: Path) -> list[Any]:
    """Feature definitions: those among `entries`, and those in files that entries name, seen from the configuration.

    Raises ConfigError for a file that cannot be read, or that holds no list.
    """
    return [one for entry in _listed(entries, conf) for one in _definitions(entry, conf)]


def _listed(value: Any, path: Path) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{path}: features must be a list of definitions, not {type(value).__name__}")
    return value


def _definitions(entry: Any, conf: Path) -> list[Any]:
    """An entry of `features`: a definition, or the path of a file of definitions, seen from the configuration."""
    if not isinstance(entry, str):
        return [entry]
    path = conf.parent / entry
    try:
        return _listed(yaml.safe_load(path.read_text()), path)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ConfigError(f"configuration {conf}: features file {path} cannot be read: {reason}") from error


def _override(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator:
        raise ConfigError(f"override {override!r} must look like key.sub=value")
    *parents, leaf = key.split(".")
    for parent in parents:
        child = raw.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is not a mapping")
        raw = child
    try:
        raw[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: its value is not valid YAML") from error
