"""HTTP service: trained bundles behind `POST /predict`.

    settings.py             settings, read from the environment
    app.py                  create_app: assembles the parts below
    server.py               run: socket, signals, exit codes
    uvicorn_internals.py    deadlines on connections and an orderly shutdown, by uvicorn's private methods
    routes.py               /predict, /explain, /models, /info, /livez, /readyz, /metrics
    pages.py                the page at /, /docs, and /report
    uploads.py              images in a request body
    predictions.py          from an image to its answer
    queue.py                bounded queue and worker threads
    registry.py             the models being served, and their replacement by newer bundles
    schemas.py              JSON of the answers
    problems.py             errors as RFC 9457 documents
    metrics.py              Prometheus metrics
    logs.py                 log lines as JSON or text
    healthcheck.py          readiness check for containers
    middleware/             request ids and logs, tracing, body limits, API keys and rates
    static/                 files of the pages

The service uses the predictor and the bundle, and nothing of training: TensorFlow is never imported here.
"""
