"""All of TensorFlow: networks, the compiled search, training, export and the network server."""
