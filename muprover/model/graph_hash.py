"""Whether two traced functions are the same, whatever process traced them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

VOLATILE_ATTRIBUTES = ("_gradient_op_type",)  # hold a counter of the process


def hash_graphs(graphs: Iterable[Any], *facts: str) -> str:
    """A hash of `GraphDef`s and of facts beside them.

    TensorFlow numbers the functions that a graph calls by a counter of the process; here they are
    named by the order in which they are first called.
    """
    digest = hashlib.sha256("\n".join(facts).encode())
    for graph in graphs:
        for part in _canonical_parts(graph):
            digest.update(part)
    return digest.hexdigest()


def _canonical_parts(graph: Any) -> Iterator[bytes]:
    """The nodes of a graph, then of the functions that it calls, each as bytes."""
    library = {function.signature.name: function for function in graph.library.function}
    names: dict[str, str] = {}
    waiting: list[str] = []

    def canonical(name: str) -> str:
        if name in library and name not in names:
            names[name] = f"function_{len(names)}"
            waiting.append(name)
        return names.get(name, name)

    yield from (_node(node, canonical) for node in graph.node)
    while waiting:
        function = library[waiting.pop(0)]
        yield names[function.signature.name].encode()
        yield from (_text(argument) for argument in function.signature.input_arg)
        yield from (_text(argument) for argument in function.signature.output_arg)
        yield from (_node(node, canonical) for node in function.node_def)
        yield repr(sorted(function.ret.items())).encode()


def _node(node: Any, canonical: Any) -> bytes:
    copy = type(node)()
    copy.CopyFrom(node)
    copy.op = canonical(copy.op)
    copy.ClearField("experimental_debug_info")
    for name in VOLATILE_ATTRIBUTES:
        copy.attr.pop(name, None)
    for name in sorted(copy.attr):
        value = copy.attr[name]
        for function in [value.func, *value.list.func] if _has_functions(value) else []:
            function.name = canonical(function.name)
    return _text(copy)


def _has_functions(value: Any) -> bool:
    return value.WhichOneof("value") == "func" or bool(
        value.WhichOneof("value") == "list" and value.list.func
    )


def _text(message: Any) -> bytes:
    data: bytes = message.SerializeToString(deterministic=True)
    return data
