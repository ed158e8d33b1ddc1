"""Structured logs of a component: one line an event, for people or as JSON for machines."""

from __future__ import annotations

import json
import logging
import sys
import time


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, component, logger, message, and the traceback if any."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "component": self._component,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False)


def configure_logging(component: str, level: str = "info", log_format: str = "text") -> None:
    """Sends the process's logs to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JsonFormatter(component))
    else:
        handler.setFormatter(
            logging.Formatter(f"%(asctime)s %(levelname)-7s {component}: %(message)s")
        )
    handler.addFilter(_concerns_people)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _concerns_people(record: logging.LogRecord) -> bool:
    """Not what TensorFlow tells of each export."""
    return record.levelno >= logging.WARNING or record.name not in ("absl", "tensorflow")
