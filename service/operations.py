"""The doors for whoever runs the service: `/livez`, `/readyz`, `/metrics`."""

from __future__ import annotations

import logging

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from service.metrics import CONTENT_TYPE, Metrics
from service.models import Models
from service.problems import documented
from service.schemas import Alive, Ready

router = APIRouter()


@router.head("/livez", include_in_schema=False)
@router.get("/livez", summary="Whether the process answers", response_model=Alive)
async def livez(request: Request) -> Alive:
    """Answer 200 as long as the process is able to. If it does not, start it anew."""
    request.state.log_level = logging.DEBUG  # asked every few seconds
    return Alive()


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Whether the service is ready", response_model=Ready, responses=documented("not_ready"))
async def readyz(request: Request) -> Ready:
    """Answer 200 once the models have been loaded and have made their first predictions; 503 with the reason until then,
    and again when the service has been told to stop."""
    models: Models = request.app.state.models
    bundle = models.check_ready().bundle
    request.state.log_level = logging.DEBUG
    return Ready(model=models.default or bundle.name, version=bundle.version)


@router.get("/metrics", summary="Figures for Prometheus", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Requests, seconds by stage of work, the queue, refusals, and the models, in Prometheus' text format."""
    figures: Metrics = request.app.state.metrics
    request.state.log_level = logging.DEBUG
    return Response(figures.exposition(), headers={"content-type": CONTENT_TYPE})
