"""The embedded network server: TensorFlow Serving's protocol in Python, around one XLA program.

`flags` and `command` load no TensorFlow; `server` puts the parts together: `manager` decides which
versions are served, `versions` loads them, `batching` joins requests, `predict` answers gRPC and
`rest` HTTP.
"""
