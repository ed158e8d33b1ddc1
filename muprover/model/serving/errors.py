"""What the server refuses, as TensorFlow Serving words it."""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import NoReturn

import grpc

from muprover.config import SettingsError

MAX_MESSAGE = 1024
HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 412,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.UNIMPLEMENTED: 501,
}


class ServingError(Exception):
    """A status code and a sentence."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def number(self) -> int:
        """The code as protos have it."""
        return int(self.code.value[0])

    @property
    def details(self) -> str:
        """The sentence, cut to a length that fits into trailers."""
        message = str(self)
        return message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + "...TRUNCATED"


def refuse(code: grpc.StatusCode, message: str) -> NoReturn:
    raise ServingError(code, message)


def as_serving_error(error: BaseException) -> ServingError:
    """`error` as a status: what is unforeseen is INTERNAL."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, SettingsError):
        return ServingError(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    if isinstance(error, CancelledError):
        return ServingError(grpc.StatusCode.CANCELLED, "the caller went away")
    return ServingError(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
