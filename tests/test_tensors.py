"""Arrays ↔ messages, in both encodings that TensorFlow Serving may answer in."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from muprover.tensors import (
    TensorError,
    from_tensor,
    from_tensor_proto,
    to_tensor,
    to_tensor_proto,
)
from muprover.v1 import serving_pb2
from muprover.v1.tensor_pb2 import BOOL, FLOAT32, UINT8, Tensor

TYPES = ["float32", "float64", "uint8", "int32", "int64", "uint64", "bool"]
SHAPES: list[tuple[int, ...]] = [(), (0,), (3,), (2, 0, 3), (2, 3, 4)]

arrays = st.sampled_from(TYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
)


def same(one: Any, other: Any) -> bool:
    """Equal in type, shape and every bit."""
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@settings(max_examples=200, deadline=None)
@given(arrays)
def test_arrays_come_back_to_the_bit(array: Any) -> None:
    assert same(from_tensor(to_tensor(array), "it"), array)
    assert same(from_tensor_proto(to_tensor_proto(array), "it"), array)


def test_views_and_foreign_byte_orders_are_sent_as_what_they_mean() -> None:
    array = np.arange(12, dtype=">i4").reshape(3, 4).T[::2]
    back = from_tensor(to_tensor(array), "it")
    assert back.dtype == np.dtype("<i4")
    assert back.tolist() == array.tolist()


def test_what_is_read_may_not_be_written() -> None:
    array = from_tensor(to_tensor(np.zeros(3)), "it")
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_bytes_are_little_endian_in_c_order() -> None:
    message = to_tensor(np.array([[1, 2], [3, 4]], np.int32).T)
    assert message.data == b"\1\0\0\0\3\0\0\0\2\0\0\0\4\0\0\0"
    assert list(message.shape) == [2, 2]


@pytest.mark.parametrize(
    ("tensor", "allowed", "sentence"),
    [
        (Tensor(shape=[1], data=b"\0"), {}, "reward has dtype 0; allowed: bool, float32, float64"),
        (Tensor(dtype=FLOAT32, shape=[2], data=b"\0" * 7), {}, "has 7 bytes, not 8"),
        (Tensor(dtype=UINT8, shape=[-2], data=b"\0\0"), {}, r"shape \[-2\]"),
        (Tensor(dtype=UINT8, shape=[2**62, 8], data=b""), {}, "bytes"),
        (Tensor(dtype=BOOL, shape=[1], data=b"\0"), {"dtype": np.float32}, "is bool, must be flo"),
        (Tensor(dtype=UINT8, shape=[1], data=b"\0"), {"shape": (None, 2)}, r"be \[any, 2\]"),
        (Tensor(dtype=UINT8, shape=[1], data=b"\0"), {"shape": ()}, r"\[1\], must be \[\]"),
    ],
)
def test_what_holds_no_array_is_said(tensor: Tensor, allowed: Any, sentence: str) -> None:
    with pytest.raises(TensorError, match=sentence):
        from_tensor(tensor, "reward", **allowed)


def test_types_that_the_wire_does_not_know_are_refused() -> None:
    with pytest.raises(TensorError, match="no tensor of complex128; allowed"):
        to_tensor(np.zeros(2, np.complex128))
    with pytest.raises(TensorError, match="no TensorProto of object"):
        to_tensor_proto(np.array([None]))


@pytest.mark.parametrize("dtype", [*TYPES, "uint32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_tensorflow_reads_and_writes_the_same(dtype: str, shape: tuple[int, ...]) -> None:
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    ours = tf.make_ndarray(tensor_pb2.TensorProto.FromString(wire(to_tensor_proto(array))))
    assert same(ours, array)
    assert same(from_tensor_proto(parsed(tf.make_tensor_proto(array)), "it"), array)


@pytest.mark.parametrize("dtype", [*TYPES, "uint32"])
@pytest.mark.parametrize("given", [0, 1, 2, 6])
def test_typed_fields_stand_for_what_tensorflow_says(dtype: str, given: int) -> None:
    """The last element given stands for all that are missing; none given, for zeros."""
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    theirs = tensor_pb2.TensorProto(dtype=tf.as_dtype(dtype).as_datatype_enum)
    for size in (2, 3):
        theirs.tensor_shape.dim.add(size=size)
    field = {"float32": "float", "float64": "double", "uint8": "int", "int32": "int"}
    getattr(theirs, f"{field.get(dtype, dtype)}_val").extend([1, 0, 3, 1, 0, 7][:given])
    expected = tf.make_ndarray(theirs)
    assert same(from_tensor_proto(parsed(theirs), "it"), expected)


def test_one_element_may_stand_for_a_whole_constant_tensor() -> None:
    import tensorflow as tf

    theirs = tf.make_tensor_proto(0.5, shape=[100, 7], dtype=tf.float32)
    assert len(theirs.float_val) == 1
    assert same(from_tensor_proto(parsed(theirs), "it"), np.full((100, 7), 0.5, np.float32))


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ({"dtype": 7}, "TensorFlow dtype 7, which is not supported"),
        ({"dtype": 1, "sizes": [2], "float_val": [1, 2, 3]}, "3 elements for shape"),
        ({"dtype": 1, "sizes": [-1], "float_val": [1]}, "1 elements for shape"),
        ({"dtype": 1, "sizes": [2], "tensor_content": b"\0" * 9}, "has 9 bytes, not 8"),
        ({"dtype": 4, "sizes": [2], "int_val": [300]}, "which is uint8"),
        ({"dtype": 1, "sizes": [2**40], "float_val": [1]}, "1 elements for shape"),
    ],
)
def test_serving_messages_that_hold_no_array_are_said(message: Any, sentence: str) -> None:
    dims = [serving_pb2.TensorShapeProto.Dim(size=n) for n in message.pop("sizes", [])]
    shape = serving_pb2.TensorShapeProto(dim=dims)
    with pytest.raises(TensorError, match=sentence):
        from_tensor_proto(serving_pb2.TensorProto(tensor_shape=shape, **message), "value")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes_are_an_array_or_an_error(data: bytes) -> None:
    for kind, read in (
        (Tensor, from_tensor),
        (serving_pb2.TensorProto, from_tensor_proto),
    ):
        with contextlib.suppress(DecodeError, TensorError):
            assert isinstance(read(kind.FromString(data), "it"), np.ndarray)


def wire(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def parsed(message: Any) -> serving_pb2.TensorProto:
    return serving_pb2.TensorProto.FromString(wire(message))
