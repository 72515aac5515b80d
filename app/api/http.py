"""The HTTP API of one pipeline: a FastAPI application over a Backend."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from html import escape
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel

from app.api import metrics
from app.api.access import require_token
from app.api.backend import Backend
from app.api.decision import Sinks, describe
from app.api.documents import (
    Answer,
    DeadLetterDocument,
    DecisionDocument,
    DuplicateEvents,
    Health,
    InvalidEvents,
    Problem,
    RejectedEvents,
    Rejection,
    Status,
    Undecided,
)
from app.api.intake import MAX_BODY_BYTES, UnacceptableError, is_list
from app.api.lane import Duplicate, Outcome
from app.api.letters import describe_letter
from app.api.openapi import describe_events
from app.api.recent import Row
from app.api.status import StatusUnavailableError
from app.errors import BrokerError
from app.log.frame import DeadLetter

PAGE = Path(__file__).parent / "page"
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
ASSETS = {file.name: file for file in PAGE.iterdir() if file.suffix in MEDIA_TYPES}
ABOUT = "How a pipeline is doing, what it decided and why, and events in with their decisions out."
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

router = APIRouter()


def backend_of(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


Service = Annotated[Backend, Depends(backend_of)]
PROBLEM_503: dict[int | str, dict[str, Any]] = {503: {"model": Problem, "description": "Something is away"}}


def create_api(backend: Backend, token: str | None = None) -> FastAPI:
    """The application. With a token, whatever writes needs `Authorization: Bearer <token>`."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        backend.start()
        yield
        await backend.stop()

    api = FastAPIOffline(
        title=f"Headrace: {backend.name}", version="1", description=ABOUT, redoc_url=None, lifespan=life
    )
    api.docs_url = "/docs"  # where FastAPIOffline serves it; Ray's dashboard links to it
    api.state.backend, api.state.token = backend, token
    api.include_router(router)
    api.add_exception_handler(StatusUnavailableError, _unavailable)
    api.add_exception_handler(BrokerError, _unavailable)
    describe_events(api, backend.pipeline.source)
    return api


async def _unavailable(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=503)


@router.get("/", include_in_schema=False)
async def live_page(request: Request) -> HTMLResponse:
    base = escape(request.scope.get("root_path", "").rstrip("/") + "/")
    html = (PAGE / "page.html").read_text().replace("{{base}}", base)
    return HTMLResponse(html, headers=SECURITY_HEADERS)


@router.get("/page/{name}", include_in_schema=False)
async def page_asset(name: str) -> Response:
    if name not in ASSETS:
        raise HTTPException(404)
    file = ASSETS[name]
    return Response(file.read_bytes(), media_type=MEDIA_TYPES[file.suffix], headers=SECURITY_HEADERS)


@router.get("/status", tags=["pipeline"], summary="How the pipeline is doing", responses=PROBLEM_503)
async def read_status(service: Service) -> Status:
    """Partitions, workers, throughput, latency by stage, sinks and alerts. At most 250 ms old."""
    return Status.model_validate(await service.status.get())


@router.get("/decisions", tags=["decisions"], summary="The latest decisions, newest first")
async def list_decisions(
    service: Service,
    limit: Annotated[int, Query(ge=1, le=200, description="how many at most")] = 20,
    with_actions: Annotated[bool, Query(description="only decisions that ask for actions")] = False,
) -> list[DecisionDocument]:
    """From the last 64 MiB of the decision log."""
    rows = await asyncio.to_thread(service.recent.latest, limit, with_actions=with_actions)
    sinks = await service.sinks()
    return [describe(row, sinks) for row in rows]


@router.get(
    "/decisions/{event_id:path}",
    tags=["decisions"],
    summary="The decision on one event",
    responses={404: {"model": Problem, "description": "No such decision was found"}, **PROBLEM_503},
)
async def read_decision(event_id: str, service: Service) -> DecisionDocument:
    """The newest decision on the event: what was known, what was decided, and how far its actions are.

    What is not in memory is looked for in the log, among the last 20,000 frames of each partition.
    """
    found = await service.find(event_id)
    if found.row is None:
        where = "in the decision log" if found.everywhere else "in the part of the decision log that was searched"
        raise HTTPException(
            404, f"there is no decision on an event {event_id!r} {where}; it may be waiting, or a dead letter"
        )
    return describe(found.row, await service.sinks())


@router.get("/dead-letters", tags=["decisions"], summary="The open dead letters, newest first")
async def list_dead_letters(
    service: Service,
    limit: Annotated[int, Query(ge=1, le=200, description="how many at most")] = 20,
) -> list[DeadLetterDocument]:
    """Records that became no decision and deliveries that a sink refused, which nobody has replayed or dropped yet.

    From the last 2,000 records of each partition of the dead-letter topic; `python -m app dead-letters` has all of
    them, and works them off.
    """
    cases = await asyncio.to_thread(service.letters.latest_open, limit)
    return [describe_letter(case) for case in cases]


async def read_body(request: Request) -> bytes:
    """The JSON that was sent. Refuses another content type: a form on a foreign site could send that unasked."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send JSON, with Content-Type: application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"send at most {MAX_BODY_BYTES:,} bytes a request")
    return bytes(body)


@router.post(
    "/events",
    tags=["decisions"],
    summary="Append events and get their decisions",
    dependencies=[Depends(require_token)],
    response_model=Answer | list[Answer],
    responses={
        200: {"description": "All are decided; what is a `duplicate` has the decision on its first copy"},
        401: {"model": Problem, "description": "The token is missing or wrong"},
        409: {
            "model": DuplicateEvents,
            "description": "Some are duplicates of events whose decision is not in memory: `/decisions/{event id}` "
            "looks for it in the log. Sending them again changes nothing",
        },
        413: {"model": Problem, "description": "The request is too large"},
        415: {"model": Problem, "description": "The request is not JSON"},
        422: {
            "model": InvalidEvents | RejectedEvents,
            "description": "Events do not validate, so nothing was appended; or the stream refused some",
        },
        504: {"model": Undecided, "description": "Appended, but not all is decided yet"},
        **PROBLEM_503,
    },
)
async def post_events(
    service: Service,
    body: Annotated[bytes, Depends(read_body)],
    wait_ms: Annotated[int, Query(ge=1, le=30_000, description="how long to wait for the decisions")] = 5_000,
) -> Response:
    """Takes one event, or a list of up to 1,000, and answers with one answer, or a list of them.

    Events go through the source topic like all others. To send one again, send it with the same id and key: within the
    pipeline's `deduplicate` it is then answered with the first decision, and no second one is made.
    """
    try:
        events = service.intake.read(body, now_ms=time.time_ns() // 1_000_000)
    except UnacceptableError as error:
        rejections = [Rejection(at=at, reason=reason) for at, reason, _ in error.rejected]
        return _respond(422, InvalidEvents(detail="nothing was appended", events=rejections))
    outcomes = await service.lane.post(events, wait_ms / 1000)
    return _answer(outcomes, await service.sinks(), as_list=is_list(body))


def _answer(outcomes: Sequence[Outcome], sinks: Sinks, *, as_list: bool) -> Response:
    answers = [_describe_outcome(outcome, sinks) for outcome in outcomes]
    open_ = sum(outcome.result is None for outcome in outcomes)
    if open_:
        detail = f"{open_} of {len(answers)} events are appended, but not decided yet; they will be"
        return _respond(504, Undecided(detail=detail, events=answers))
    refused = sum(answer.rejected is not None for answer in answers)
    if refused:
        detail = f"{refused} of {len(answers)} events went to the dead letters"
        return _respond(422, RejectedEvents(detail=detail, events=answers))
    unknown = sum(answer.duplicate and answer.decision is None for answer in answers)
    if unknown:
        detail = f"{unknown} of {len(answers)} events are duplicates, and the first decision is not in memory"
        return _respond(409, DuplicateEvents(detail=detail, events=answers))
    return _respond(200, answers if as_list else answers[0])


def _describe_outcome(outcome: Outcome, sinks: Sinks) -> Answer:
    answer = Answer(event_id=outcome.event_id, **outcome.place._asdict())
    if isinstance(outcome.result, Row):
        answer.decision = describe(outcome.result, sinks)
    elif isinstance(outcome.result, Duplicate):
        answer.duplicate = True
        answer.decision = describe(outcome.result.first, sinks) if outcome.result.first else None
    elif isinstance(outcome.result, DeadLetter):
        answer.rejected = outcome.result.reason
    return answer


def _respond(status: int, content: BaseModel | Sequence[BaseModel]) -> JSONResponse:
    if isinstance(content, BaseModel):
        return JSONResponse(content.model_dump(mode="json"), status_code=status)
    return JSONResponse([each.model_dump(mode="json") for each in content], status_code=status)


@router.get(
    "/metrics",
    tags=["operations"],
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **PROBLEM_503},
)
async def read_metrics(service: Service) -> Response:
    """Of the whole pipeline, whichever replica of the API answers."""
    return Response(metrics.render(await service.status.get()), media_type=metrics.CONTENT_TYPE)


@router.get("/healthz", tags=["operations"], summary="Is this process alive?")
async def read_health(service: Service, response: Response) -> Health:
    """200 while the readers of the logs live; `detail` says why they may have nothing to read."""
    response.status_code = 200 if service.alive else 503
    return Health(ok=service.alive, detail=service.tail.last_error or service.letters_tail.last_error)


@router.get("/readyz", tags=["operations"], summary="Are events being decided?", responses={503: {"model": Health}})
async def read_readiness(service: Service, response: Response) -> Health:
    """200 when every partition has an owner and the decision log can be read."""
    status = await service.status.get_if_available()
    if status is None:
        reason: str | None = "the coordinator does not answer"
    elif not status["ready"]:
        reason = "some partition has no owner"
    else:
        reason = service.tail.last_error
    response.status_code = 200 if reason is None else 503
    return Health(ok=reason is None, detail=reason)
