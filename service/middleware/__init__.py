"""ASGI middleware, from the outside in: request context, body limits, access."""
