"""`muprover network`: reads its flags, looks at its ports, and only then loads TensorFlow."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from muprover.config import SettingsError
from muprover.model.serving.flags import ServerOptions, listen, read_options
from muprover.services.common import PortError
from muprover.standby import is_standby

EXIT_USAGE = 2


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT; answers the exit status."""
    try:
        options = read_options(args)
    except SettingsError as error:
        return _fail(error)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        if not is_standby():  # whose place is taken yet
            _try_ports(options)  # before TensorFlow is loaded, which takes seconds
        from muprover.model.serving.server import serve_until_signal

        serve_until_signal(options)
    except (SettingsError, PortError) as error:
        return _fail(error)
    return 0


def _try_ports(options: ServerOptions) -> None:
    """Raises `PortError` for one that is taken."""
    ports = {"--port": options.port, "--rest-api-port": options.rest_port}
    ports["--metrics-port"] = options.metrics_port or 0
    ports["--health-port"] = options.health_port or 0
    for option, port in ports.items():
        if port > 0:
            listen(options.host, port, option).close()


def _fail(error: Any) -> int:
    print(f"muprover network: {error}", file=sys.stderr)
    return EXIT_USAGE
