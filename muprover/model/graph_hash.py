"""Whether two traced functions are the same, whatever process traced them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

# Hold counters of the process, or names of nodes.
VOLATILE_ATTRIBUTES = ("_gradient_op_type", "_class", "_construction_context")


def hash_graphs(graphs: Iterable[Any], *facts: str) -> str:
    """A hash of `GraphDef`s and of facts beside them.

    Names do not count: TensorFlow and Keras number functions and layers by counters of the
    process. Here functions go by the order in which they are first called, nodes by their place.
    """
    digest = hashlib.sha256("\n".join(facts).encode())
    for graph in graphs:
        for part in _canonical_parts(graph):
            digest.update(part)
    return digest.hexdigest()


def _canonical_parts(graph: Any) -> Iterator[bytes]:
    """The nodes of a graph, then of the functions that it calls, each as bytes."""
    library = {function.signature.name: function for function in graph.library.function}
    functions: dict[str, str] = {}
    waiting: list[str] = []

    def canonical(name: str) -> str:
        if name in library and name not in functions:
            functions[name] = f"function_{len(functions)}"
            waiting.append(name)
        return functions.get(name, name)

    yield from _nodes(graph.node, {}, canonical)
    while waiting:
        yield from _function(library[waiting.pop(0)], canonical)


def _function(function: Any, canonical: Callable[[str], str]) -> Iterator[bytes]:
    signature = function.signature
    yield canonical(signature.name).encode()
    names = {argument.name: f"argument_{i}" for i, argument in enumerate(signature.input_arg)}
    yield repr([argument.type for argument in signature.input_arg]).encode()
    yield from _nodes(function.node_def, names, canonical)
    for argument in signature.output_arg:
        yield _reference(function.ret[argument.name], names).encode()


def _nodes(
    nodes: Iterable[Any], names: dict[str, str], canonical: Callable[[str], str]
) -> Iterator[bytes]:
    """Each node as bytes; adds what it is called here to `names`."""
    nodes = list(nodes)
    names.update({node.name: f"node_{i}" for i, node in enumerate(nodes)})
    for node in nodes:
        copy = type(node)()
        copy.CopyFrom(node)
        copy.name, copy.op = names[node.name], canonical(node.op)
        copy.input[:] = [_reference(reference, names) for reference in node.input]
        copy.ClearField("experimental_debug_info")
        for name in VOLATILE_ATTRIBUTES:
            copy.attr.pop(name, None)
        for name in sorted(copy.attr):
            value = copy.attr[name]
            for called in [value.func, *value.list.func] if _has_functions(value) else []:
                called.name = canonical(called.name)
        yield copy.SerializeToString(deterministic=True)


def _reference(reference: str, names: Mapping[str, str]) -> str:
    """`name`, `name:output:0` or `^name`, by the name's place."""
    control = "^" if reference.startswith("^") else ""
    name, colon, output = reference.removeprefix("^").partition(":")
    return f"{control}{names.get(name, name)}{colon}{output}"


def _has_functions(value: Any) -> bool:
    kind = value.WhichOneof("value")
    return kind == "func" or (kind == "list" and bool(value.list.func))
