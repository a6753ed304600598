"""JSON and small YAML files, read with suspicion: neither endless nor ambiguous."""

import json
import math
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from lib import InputError, in_a_line

YAML_BYTES = 2**16  # a profile or a list of claims is smaller
YAML_VALUES = 10**5


def parse_json(text: bytes | str) -> Any:
    """JSON as we write it.

    Raises ValueError for anything else, NaN, infinity and endless nesting included.
    """

    def finite(number: str) -> float:
        if math.isfinite(float(number)):
            return float(number)
        raise ValueError(f"{number[:20]} is no finite number")

    try:
        return json.loads(text, parse_constant=finite, parse_float=finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


class _BoundedLoader(yaml.SafeLoader):
    """YAML not too deep, no name twice, whose aliases stand for YAML_VALUES values at most.

    They can stand for a tree of any size; of a name's two values PyYAML would keep the last.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if len(self.states) > 99:
            raise yaml.YAMLError("nested too deeply")
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in names:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"'{key.value}' is there twice, line {line}")
            names.add(key.value)
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _written_out(node, {}) > YAML_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {YAML_VALUES} values")
        return node


def _written_out(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node has with its aliases written out.

    known: what is known of other nodes, by their id.
    """
    if id(node) not in known:
        known[id(node)] = math.inf  # while it is counted: it may be inside of itself
        known[id(node)] = 1 + sum(_written_out(child, known) for child in _children(node))
    return known[id(node)]


def _children(node: yaml.Node) -> list[yaml.Node]:
    """A list's values, a mapping's keys and values."""
    if isinstance(node, yaml.MappingNode):
        return list(chain.from_iterable(node.value))
    if isinstance(node, yaml.SequenceNode):
        return node.value
    return []


def parse_yaml(content: bytes) -> object:
    """YAML of YAML_BYTES and, aliases written out, YAML_VALUES at most.

    Raises ValueError or yaml.YAMLError for anything else.
    """
    if len(content) > YAML_BYTES:
        raise ValueError(f"larger than {YAML_BYTES} bytes")
    return yaml.load(content, _BoundedLoader)


def read_yaml(path: Path) -> object:
    """A small YAML file (``parse_yaml``).

    Raises InputError, naming it, where it is none or too large.
    """
    try:
        with open(path, "rb") as file:
            return parse_yaml(file.read(YAML_BYTES + 1))
    except Exception as error:  # PyYAML lets through whatever its constructors raise
        why = in_a_line(error, 200) or type(error).__name__
        raise InputError(f"{path} can't be read as YAML: {why}") from error
