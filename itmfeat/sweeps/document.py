"""A sweep as it was written down: a YAML file with the line of each value, or flags."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from itmfeat.errors import DataError, UsageError

LIMIT = 1_000_000  # values of a file, with those that anchors repeat


@dataclass(frozen=True)
class Value:
    """A plain value, a list of Values or a dictionary of them, and where it was written.

    `place` reads like "study.yaml, line 7" or "--loss".
    """

    held: Any
    place: str

    def each(self) -> "list[Value]":
        """The items of a list; anything else is the only one of its kind."""
        return self.held if isinstance(self.held, list) else [self]


def read_yaml(path: Path) -> Value:
    """The content of a file; a DataError or UsageError that names the line of what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8") from None
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; name the YAML file in it") from None
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        raise UsageError(f"{path.name}: no YAML, it holds the character {error.character:#06x}") from None
    try:
        node = loader.get_single_node()
        if node is None:
            raise UsageError(f"{path} is empty: write at least `loss: triplet` into it")
        return _Reader(loader, path.name).value(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path.name}{line}: no YAML, {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path.name}: no YAML, {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise UsageError(f"{path.name}: a value contains itself") from None
    finally:
        loader.dispose()


class _Reader:
    """Turns YAML nodes into Values."""

    def __init__(self, loader: yaml.SafeLoader, name: str) -> None:
        self._loader, self._name, self._count = loader, name, 0

    def value(self, node: yaml.Node) -> Value:
        self._count += 1
        if self._count > LIMIT:
            raise UsageError(f"{self._name} has more than {LIMIT} values, with those that aliases repeat")
        place = self._place(node)
        if isinstance(node, yaml.MappingNode):
            return Value(self._mapping(node), place)
        if isinstance(node, yaml.SequenceNode):
            return Value([self.value(item) for item in node.value], place)
        return Value(self._plain(node), place)

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Value]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise UsageError(f"{self._place(key)}: a key must be a plain word")
            if key.value in seen:
                raise UsageError(f"{self._place(key)}: the key {key.value!r} is there twice")
            seen.add(key.value)
        self._loader.flatten_mapping(node)  # takes in what `<<` names, first, so that own keys win
        found = {key.value: self.value(item) for key, item in node.value}
        lines = {key.value: self._place(key) for key, _ in node.value}
        return {
            key: item if isinstance(item.held, list | dict) else Value(item.held, lines[key])
            for key, item in found.items()
        }

    def _plain(self, node: yaml.Node) -> Any:
        try:
            return self._loader.construct_object(node)
        except ValueError as error:  # a date that is none
            raise UsageError(f"{self._place(node)}: {error}") from None

    def _place(self, node: yaml.Node) -> str:
        return f"{self._name}, line {node.start_mark.line + 1}"


def given(name: str, values: Any) -> Value:
    """A value from a caller: one, or a list of them; `name` is the flag or keyword."""
    if isinstance(values, dict):
        return Value({key: given(name, value) for key, value in values.items()}, name)
    if isinstance(values, Iterable) and not isinstance(values, str):
        return Value([given(name, value) for value in values], name)
    return Value(values, name)
