"""ASGI middleware, from the outside in: CORS (Starlette's), request context, body limits, access."""
