"""Arrays ↔ messages: MuProver's own `Tensor`, and TensorFlow's `TensorProto` without TensorFlow."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muprover.v1 import serving_pb2, tensor_pb2

Array = NDArray[Any]

_DTYPES: dict[tensor_pb2.DType, np.dtype[Any]] = {
    tensor_pb2.FLOAT32: np.dtype("<f4"),
    tensor_pb2.FLOAT64: np.dtype("<f8"),
    tensor_pb2.UINT8: np.dtype("u1"),
    tensor_pb2.INT32: np.dtype("<i4"),
    tensor_pb2.INT64: np.dtype("<i8"),
    tensor_pb2.UINT64: np.dtype("<u8"),
    tensor_pb2.BOOL: np.dtype("?"),
}
_NUMBERS = {dtype: number for number, dtype in _DTYPES.items()}

# tensorflow.DataType → numpy and the typed field that may hold the elements instead of bytes
_SERVING_DTYPES: dict[int, tuple[np.dtype[Any], str]] = {
    1: (np.dtype("<f4"), "float_val"),
    2: (np.dtype("<f8"), "double_val"),
    3: (np.dtype("<i4"), "int_val"),
    4: (np.dtype("u1"), "int_val"),
    9: (np.dtype("<i8"), "int64_val"),
    10: (np.dtype("?"), "bool_val"),
    22: (np.dtype("<u4"), "uint32_val"),
    23: (np.dtype("<u8"), "uint64_val"),
}
_SERVING_NUMBERS = {dtype: number for number, (dtype, _) in _SERVING_DTYPES.items()}

_MAX_BYTES = 1 << 30  # of an array whose message does not spell out every element
_MAX_AXES = 32


class TensorError(ValueError):
    """A message that holds no array, or not the one expected."""


def to_tensor(array: Array) -> tensor_pb2.Tensor:
    """The message of an array; its type must be one that the wire knows."""
    number = _NUMBERS.get(array.dtype)
    if number is None:
        array = _little_endian(array)
        number = _NUMBERS.get(array.dtype)
    if number is None:
        raise TensorError(f"no tensor of {array.dtype}; allowed: {_names()}")
    return tensor_pb2.Tensor(dtype=number, shape=array.shape, data=array.tobytes())


def from_tensor(
    tensor: tensor_pb2.Tensor,
    name: str,
    dtype: Any = None,
    shape: tuple[int | None, ...] | None = None,
) -> Array:
    """The array of a message, read-only and without a copy.

    `dtype` and `shape` (None stands for any length) are what is allowed; `TensorError` names what
    differs.
    """
    numpy_dtype = _DTYPES.get(tensor.dtype)
    if numpy_dtype is None:
        raise TensorError(f"{name} has dtype {tensor.dtype}; allowed: {_names()}")
    given = tuple(tensor.shape[:])  # a slice is twice as fast to read
    if dtype is not None and numpy_dtype != np.dtype(dtype):
        raise TensorError(f"{name} is {numpy_dtype.name}, must be {np.dtype(dtype).name}")
    if shape is not None and len(given) <= _MAX_AXES and not _fits(given, shape):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise TensorError(f"{name} has shape {list(given)}, must be [{wanted}]")
    return _array(tensor.data, numpy_dtype, given, name)


def to_tensor_proto(array: Array) -> serving_pb2.TensorProto:
    """TensorFlow's message of an array, as raw bytes."""
    array = _little_endian(array)
    number = _SERVING_NUMBERS.get(array.dtype)
    if number is None:
        raise TensorError(f"no TensorProto of {array.dtype}")
    return serving_pb2.TensorProto(
        dtype=number, tensor_shape=_shape_proto(array.shape), tensor_content=array.tobytes()
    )


def from_tensor_proto(tensor: serving_pb2.TensorProto, name: str) -> Array:
    """The array of TensorFlow's message, in either encoding: bytes, or typed fields in which the
    last element given stands for all that are missing (and none given for zeros)."""
    if tensor.dtype not in _SERVING_DTYPES:
        raise TensorError(f"{name} has TensorFlow dtype {tensor.dtype}, which is not supported")
    dtype, field = _SERVING_DTYPES[tensor.dtype]
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    if tensor.tensor_content:
        return _array(tensor.tensor_content, dtype, shape, name)
    given = getattr(tensor, field)
    size = _size(shape, name)
    if size < 0 or len(given) > size or size * dtype.itemsize > _MAX_BYTES:
        raise TensorError(f"{name} has {len(given)} elements for shape {list(shape)}")
    try:
        values = np.fromiter(given, dtype, len(given))
    except OverflowError as error:
        raise TensorError(f"{name}, which is {dtype.name}: {error}") from None
    rest = np.full(size - len(given), given[-1] if given else 0, dtype)
    return np.concatenate([values, rest]).reshape(shape)


@functools.lru_cache(1024)
def _shape_proto(shape: tuple[int, ...]) -> serving_pb2.TensorShapeProto:
    """To be copied into messages, never changed."""
    return serving_pb2.TensorShapeProto(
        dim=[serving_pb2.TensorShapeProto.Dim(size=n) for n in shape]
    )


def _little_endian(array: Array) -> Array:
    array = np.asarray(array)
    dtype = array.dtype.newbyteorder("<")
    return array if array.dtype == dtype else array.astype(dtype)


def _array(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> Array:
    expected = _size(shape, name) * dtype.itemsize
    if len(data) != expected:
        needs = f"not {expected}" if expected >= 0 else "but there is no such shape"
        raise TensorError(
            f"{name} of shape {list(shape)} and {dtype.name} has {len(data)} bytes, {needs}"
        )
    return np.ndarray(shape, dtype, data)


def _size(shape: tuple[int, ...], name: str) -> int:
    """How many elements an array of this shape has; below 0 where there can be no such array."""
    if len(shape) > _MAX_AXES:
        raise TensorError(f"{name} has {len(shape)} axes; at most {_MAX_AXES} are allowed")
    size = math.prod(shape)
    if size <= 0 and shape:  # numpy refuses some arrays even without elements
        possible = min(shape) == 0 and math.prod(n or 1 for n in shape) <= 1 << 56
        return 0 if possible else -1
    return size if min(shape, default=1) > 0 else -1


def _fits(given: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return given == wanted or (
        len(given) == len(wanted)
        and all(want is None or want == n for n, want in zip(given, wanted, strict=True))
    )


def _names() -> str:
    return ", ".join(sorted(dtype.name for dtype in _NUMBERS))
