"""TensorFlow Serving's JSON of predictions: rows (`instances`) or columns (`inputs`) to arrays, and
arrays to what answers them."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from muprover.model.serving.errors import refuse
from muprover.tensors import from_tensor_proto

Array = NDArray[Any]

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def read_json(body: bytes) -> dict[str, Any]:
    if not body:
        refuse(INVALID, "JSON Parse error: The document is empty")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        offset = getattr(error, "pos", 0)
        reason = getattr(error, "msg", None) or str(error)
        refuse(INVALID, f"JSON Parse error: {reason} at offset: {offset}")
    if not isinstance(document, dict):
        refuse(INVALID, f"JSON Value: {_shown(document)} Is not object")
    return document


def signature_name(document: Mapping[str, Any]) -> str:
    """The signature asked for; empty for the default one."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        refuse(
            INVALID,
            f"JSON Value: {_shown(document)} not formatted correctly. 'signature_name' key "
            "must be a string value.",
        )
    return name


def read_columns(
    document: Mapping[str, Any], infos: Mapping[str, Any]
) -> tuple[dict[str, Array], bool]:
    """The inputs that a document gives, and whether it does so by rows; `infos` tells their types
    by name."""
    if _is_row_format(document):
        return _read_instances(document["instances"], infos), True
    return _read_inputs(document["inputs"], infos), False


def read_tensor(name: str, tensor: Any) -> Array:
    if tensor.string_val:
        array: Array = tf.make_ndarray(tensor)
        return array
    return from_tensor_proto(tensor, name)


def format_outputs(outputs: Mapping[str, Array], is_row_format: bool) -> str:
    """The JSON of some outputs: an object for each row, or a list for each output; names are left
    out where there is only one output."""
    columns = {name: _plain(array) for name, array in outputs.items()}
    [first, *others] = columns.values()
    if not is_row_format:
        return json.dumps({"outputs": columns if others else first}, indent=4)
    if others:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return json.dumps({"predictions": rows}, indent=4)
    return json.dumps({"predictions": first}, indent=4)


def _is_row_format(document: Mapping[str, Any]) -> bool:
    """Whether there are `instances`, or else `inputs`."""
    if "instances" not in document and "inputs" not in document:
        refuse(INVALID, "Missing 'inputs' or 'instances' key")
    if "instances" not in document:
        return False
    instances, whole = document["instances"], _shown(document)
    if "inputs" in document:
        refuse(
            INVALID,
            f"JSON Value: {whole} Not formatted correctly expecting only one of 'inputs' or "
            "'instances' keys to exist ",
        )
    if not isinstance(instances, list):
        refuse(INVALID, f"JSON Value: {whole} Excepting 'instances' to be an list/array")
    if not instances:
        refuse(INVALID, f"JSON Value: {whole} No values in 'instances' array")
    return True


def _read_instances(instances: list[Any], infos: Mapping[str, Any]) -> dict[str, Array]:
    """A list of objects with a value for each input, or of values for the only one."""
    names = sorted(infos)
    if not _is_object(instances[0]):
        if len(names) > 1:
            refuse(
                INVALID,
                "instances is a plain list, but expecting list of objects as multiple input "
                "tensors required as per tensorinfo_map",
            )
        for i, item in enumerate(instances):
            if _is_object(item):
                refuse(INVALID, f"Expecting value/list but got object at item {i} of input list")
        return {names[0]: _to_array(names[0], instances, infos[names[0]])}
    for i, item in enumerate(instances):
        if not _is_object(item):
            refuse(INVALID, f"Expecting object but got list at item {i} of input list")
        unknown = sorted(set(item) - set(names))
        if unknown:
            refuse(
                INVALID,
                f"Failed to process element: {i} key: {unknown[0]} of 'instances' list. Error: "
                f"INVALID_ARGUMENT: JSON object: does not have named input: {unknown[0]}",
            )
        if len(item) < len(names):
            refuse(
                INVALID,
                f"Failed to process element: {i} of 'instances' list. JSON object: {_shown(item)} "
                f"keys must be equal to: {','.join(names)}",
            )
    return {
        name: _to_array(name, [item[name] for item in instances], infos[name]) for name in names
    }


def _read_inputs(inputs: Any, infos: Mapping[str, Any]) -> dict[str, Array]:
    """An object with a list for each input, or a list for the only one."""
    names = sorted(infos)
    if not _is_object(inputs):
        if len(names) > 1:
            refuse(
                INVALID,
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map",
            )
        return {names[0]: _to_array(names[0], inputs, infos[names[0]])}
    for name in names:
        if name not in inputs:
            refuse(INVALID, f"Missing named input: {name} in 'inputs' object.")
    return {name: _to_array(name, inputs[name], infos[name]) for name in names}


def _to_array(name: str, value: Any, info: Any) -> Array:
    """The array that nested lists stand for, of the input's type."""
    dtype = tf.dtypes.as_dtype(info.dtype)
    if dtype == tf.string:
        return np.array(_map_leaves(value, _to_bytes), object)
    types = _python_types(dtype)
    _map_leaves(value, lambda leaf: _check_leaf(leaf, types, dtype))
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        refuse(INVALID, f"{name}: Encountered list at unexpected size or level")
    try:
        converted: Array = array.astype(dtype.as_numpy_dtype)
    except (ValueError, OverflowError):
        refuse(INVALID, f"{name}: a number does not fit into {dtype.name}")
    if dtype.is_integer and not (converted == array).all():
        refuse(INVALID, f"{name}: a number does not fit into {dtype.name}")
    return converted


def _python_types(dtype: tf.DType) -> tuple[type, ...]:
    """Of JSON values that an element of a tensor may be."""
    if dtype == tf.bool:
        return (bool,)
    return (int,) if dtype.is_integer else (int, float)


def _check_leaf(leaf: Any, types: tuple[type, ...], dtype: tf.DType) -> None:
    if type(leaf) in types:
        return
    names = {bool: str(leaf), str: "String", dict: "Object", type(None): "Null"}
    refuse(
        INVALID,
        f"JSON Value: {_shown(leaf)} Type: {names.get(type(leaf), 'Number')} "
        f"is not of expected type: {dtype.name}",
    )


def _to_bytes(leaf: Any) -> bytes:
    if isinstance(leaf, str):
        return leaf.encode()
    if _is_base64(leaf):
        try:
            return base64.b64decode(leaf["b64"], validate=True)
        except (binascii.Error, ValueError):
            refuse(INVALID, "Unable to base64 decode")
    refuse(INVALID, f"JSON Value: {_shown(leaf)} not formatted correctly for base64 data")


def _map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(value, list):
        return [_map_leaves(item, function) for item in value]
    return function(value)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str)


def _plain(array: Array) -> Any:
    """Nested lists; numbers as short as their type allows."""
    if array.dtype == np.float32:
        return array.astype("U").astype(np.float64).tolist()
    if array.dtype == object:
        return _map_leaves(array.tolist(), _to_text)
    return array.tolist()


def _to_text(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(data).decode()}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "…"
