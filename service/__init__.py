"""The HTTP service: a trained bundle behind `POST /predict`.

    settings.py     what can be set, from the environment
    app.py          create_app: puts the parts together
    server.py       run: the process; socket, signals, exit codes
    protocol.py     deadlines on connections, and an orderly end
    context.py      request ids, one log line a request, the last resort for errors
    limits.py       how large, how slow, how much at once a body may be
    routes.py       /predict, /health, /info
    upload.py       the picture in a request, kept in memory
    worker.py       the bounded queue in front of the predictor
    model.py        the predictor being served, and how far its loading is
    problems.py     every error as an RFC 9457 document
    schemas.py      what the answers look like
    healthcheck.py  asks a running service whether it is ready; for containers

It knows the predictor and the bundle, and nothing of training: TensorFlow is never imported here.
"""
