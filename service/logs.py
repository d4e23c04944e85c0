"""Log lines: one JSON object per line, or the same as text on a terminal.

The message of a record is the name of an event; its details are the record's `extra`. Values are written as JSON in both
forms, so nothing that a client sends can break a line or change a terminal's colors.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object: time, level, event, details."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self.fields(record), default=str)

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """Return the logged fields in order."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, Any] = {
            "time": moment.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _STANDARD},
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return fields


class TextFormatter(JsonFormatter):
    """One line for people: time of day, level, event, name=value; a traceback keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        fields = self.fields(record)
        time, level, event = (fields.pop(name) for name in ("time", "level", "event"))
        trace = fields.pop("exception", "")
        details = " ".join(f"{name}={json.dumps(value, default=str)}" for name, value in fields.items())
        event = event if event.isprintable() else json.dumps(event)
        return f"{time[11:19]} {level:7} {event} {details}".rstrip() + (f"\n{trace}" if trace else "")


def configure_logging(level: str = "info", form: str = "auto") -> None:
    """Send the logs of the service and of uvicorn to stderr. A second call replaces the first one's handlers."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    for name, least in (("service", level), ("uvicorn", "warning")):  # the service logs its own start and end
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(max(getattr(logging, level.upper()), getattr(logging, least.upper())))
        logger.propagate = False
