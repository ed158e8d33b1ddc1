"""Arrays of requests and answers ↔ TensorFlow's messages."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import grpc
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2

from muprover.model.serving.errors import refuse
from muprover.tensors import TensorError, from_tensor_proto

Array = NDArray[Any]

MAX_UNBATCHED = 1 << 20  # elements of an input without a batch
TYPED_FIELDS = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int32: "int_val",
    tf.int64: "int64_val",
    tf.uint8: "int_val",
    tf.bool: "bool_val",
    tf.uint32: "uint32_val",
    tf.uint64: "uint64_val",
}

_INVALID = grpc.StatusCode.INVALID_ARGUMENT


class InputSpec(NamedTuple):
    """What a signature says of one of its inputs."""

    name: str
    dtype: int  # as TensorFlow numbers them
    shape: tuple[int, ...] | None  # -1: any length; None: any shape

    @classmethod
    def of(cls, name: str, info: Any) -> InputSpec:
        shape = tuple(dim.size for dim in info.tensor_shape.dim)
        return cls(name, info.dtype, None if info.tensor_shape.unknown_rank else shape)

    def fits(self, shape: tuple[int, ...]) -> bool:
        return self.shape is None or (
            len(shape) == len(self.shape)
            and all(want in (-1, n) for n, want in zip(shape, self.shape, strict=True))
        )


def decode(tensor: tensor_pb2.TensorProto, spec: InputSpec, max_rows: int) -> Array:
    """The array of an input, of the type and shape that the signature says; never more memory
    than that may need. Raises `ServingError`."""
    if tensor.dtype != spec.dtype:
        expected, given = dtype_name(spec.dtype), dtype_name(tensor.dtype)
        refuse(_INVALID, f"input {spec.name} must be {expected}, but {given} is provided")
    if not tensor.tensor_content:
        _check_size(tensor, spec, max_rows)
    try:
        array = from_tensor_proto(tensor, spec.name)
    except TensorError:
        array = _decode_slowly(tensor, spec.name)
    _check_shape(array.shape, spec)
    return array


def encode(array: Array, as_content: bool) -> tensor_pb2.TensorProto:
    """A `TensorProto`, in raw bytes (`as_content`) or typed fields."""
    if array.dtype == object:
        proto: tensor_pb2.TensorProto = tf.make_tensor_proto(array)
        return proto
    dtype = tf.dtypes.as_dtype(array.dtype)
    proto = tensor_pb2.TensorProto(
        dtype=dtype.as_datatype_enum, tensor_shape=_shape_proto(array.shape)
    )
    field = TYPED_FIELDS.get(dtype)
    if as_content or field is None:
        proto.tensor_content = array.tobytes()
    else:
        getattr(proto, field).extend(array.ravel().tolist())
    return proto


@functools.lru_cache(1024)
def _shape_proto(shape: tuple[int, ...]) -> tensor_shape_pb2.TensorShapeProto:
    """To be copied into messages, never changed."""
    return tensor_shape_pb2.TensorShapeProto(
        dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=n) for n in shape]
    )


def dtype_name(number: int) -> str:
    try:
        return str(tf.dtypes.as_dtype(number).name)
    except (TypeError, KeyError):
        return f"type {number}"


def _check_size(tensor: tensor_pb2.TensorProto, spec: InputSpec, max_rows: int) -> None:
    """Before elements are repeated: one may stand for any number of them."""
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    _check_shape(shape, spec)
    most = math.prod(max_rows if n < 0 else n for n in spec.shape or ()) or MAX_UNBATCHED
    if math.prod(shape) > max(most, MAX_UNBATCHED):
        refuse(_INVALID, f"Task size {shape[0]} is larger than maximum input batch size {max_rows}")


def _check_shape(shape: tuple[int, ...], spec: InputSpec) -> None:
    if not spec.fits(shape):
        wanted = ",".join("?" if n < 0 else str(n) for n in spec.shape or ())
        refuse(_INVALID, f"input {spec.name} must have shape [{wanted}], given {list(shape)}")


def _decode_slowly(tensor: tensor_pb2.TensorProto, name: str) -> Array:
    """Strings, and types that no game sends."""
    try:
        array: Array = tf.make_ndarray(tensor)
    except (ValueError, TypeError):
        refuse(_INVALID, f"tensor parsing error: {name}")
    return array
