"""The pipeline's events in the OpenAPI document: the body of POST /events is theirs."""

from typing import Any

import msgspec
from fastapi import FastAPI

from app.event import Event


def describe_events(api: FastAPI, source: type[Event]) -> None:
    """Puts the event class's schema where FastAPI, which reads the body as bytes, knows nothing."""
    (reference,), components = msgspec.json.schema_components([source], ref_template="#/components/schemas/{name}")
    body = {"oneOf": [reference, {"type": "array", "items": reference, "minItems": 1}]}
    plain = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            document = plain()
            document["components"]["schemas"] |= components
            document["paths"]["/events"]["post"]["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": body}},
            }
        return plain()

    api.openapi = openapi  # type: ignore[method-assign]
