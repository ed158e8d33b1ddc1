"""The embedded network server: TensorFlow Serving's protocol in Python, around one XLA program.

`command` holds the flags (and no TensorFlow); `server` puts the parts together: `manager` decides
which versions are served, `versions` loads them, `batching` joins requests, `predict` answers gRPC
and `rest` HTTP.
"""

from muprover.model.serving.command import add_arguments, run

__all__ = ["add_arguments", "run"]
