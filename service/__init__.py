"""The HTTP service: trained bundles behind `POST /predict`.

    settings.py     what can be set, from the environment
    app.py          create_app: puts the parts together
    server.py       run: the process; socket, signals, exit codes
    protocol.py     deadlines on connections, and an orderly end
    context.py      request ids, one log line a request, the last resort for errors
    metrics.py      what Prometheus is told
    tracing.py      spans for OpenTelemetry, where it is there
    limits.py       how large, how slow, how much at once a body may be
    gate.py         API keys and rate limits
    routes.py       /predict, /explain, /models, /info
    operations.py   /livez, /readyz, /metrics
    upload.py       the images in a request, kept in memory
    answers.py      from an image to the answer about it
    worker.py       the bounded queue in front of the predictor
    model.py        one model being served, and its replacement by a newer bundle
    models.py       all of them: found, watched, taken by name
    problems.py     every error as an RFC 9457 document
    schemas.py      what the answers look like
    healthcheck.py  asks a running service whether it is ready; for containers

It knows the predictor and the bundle, and nothing of training: TensorFlow is never imported here.
"""
