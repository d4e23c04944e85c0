"""Log lines that machines read: one JSON object a line, or the same as text on a terminal.

The message of a record is the name of an event; what belongs to it comes as `extra`. Values are written as JSON in both
forms, so nothing that a client sends can break a line or color a terminal.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object: time, level, event, then what the record carries."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self.fields(record), default=str)

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """What is logged, in order."""
        moment = datetime.fromtimestamp(record.created, UTC)
        fields: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        fields |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return fields


class TextFormatter(JsonFormatter):
    """The same for people: the time of day, the event, then name=value; a traceback keeps its lines."""

    def format(self, record: logging.LogRecord) -> str:
        fields = self.fields(record)
        time, level, event = (fields.pop(name) for name in ("time", "level", "event"))
        trace = fields.pop("exception", "")
        details = " ".join(f"{name}={json.dumps(value, default=str)}" for name, value in fields.items())
        event = event if event.isprintable() else json.dumps(event)
        return f"{time[11:19]} {level:7} {event} {details}".rstrip() + (f"\n{trace}" if trace else "")


def configure_logging(level: str = "info", form: str = "auto") -> None:
    """Send what the service and its server log to stderr. Calling it again replaces what the first call set up."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    for name, least in (("service", level), ("uvicorn", "warning")):  # starts and ends are told by the service itself
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(max(getattr(logging, level.upper()), getattr(logging, least.upper())))
        logger.propagate = False
