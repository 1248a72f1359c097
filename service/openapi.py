"""The OpenAPI document: what the framework finds, plus what it can't know."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.errors import Problem

DESCRIPTION = """\
Upload a trained CNN, say how much accuracy you can spare, download a file that is really smaller, with a report measured
on that very file.

1. `POST /v1/models` and `POST /v1/datasets` take files; a worker inspects them.
2. `POST /v1/jobs` takes a recipe, or a goal for which one is searched; `GET /v1/jobs/{job_id}` and its events say how far it is.
3. `GET /v1/jobs/{job_id}/report` has the measured numbers, `GET /v1/jobs/{job_id}/artifacts` the files.

Every error is a problem document (RFC 9457) that says what to do. Every answer has an `X-Request-ID`.
"""

TAGS = [
    {"name": "models", "description": "The CNNs that you bring."},
    {"name": "datasets", "description": "The images that they are judged by."},
    {"name": "jobs", "description": "Compressions: asked for, watched, cancelled, finished early, retried."},
    {"name": "artifacts", "description": "The files that jobs deliver."},
    {"name": "steps", "description": "What a recipe can consist of."},
    {"name": "health", "description": "For whoever runs the service."},
]


def describe(app: FastAPI) -> dict[str, Any]:
    """The document of `app`, made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            tags=app.openapi_tags,
            routes=app.routes,
            separate_input_output_schemas=False,
        )
        _, definitions = models_json_schema([(Problem, "validation")], ref_template="#/components/schemas/{model}")
        document["components"]["schemas"].update(definitions["$defs"])
        for operations in document["paths"].values():
            for operation in operations.values():
                for parameter in operation.get("parameters", ()):
                    parameter["schema"] = _without_null(parameter["schema"])
        app.openapi_schema = document
    return app.openapi_schema


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is there or not; there is no way to write null into a URL or a header."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {**{name: value for name, value in schema.items() if name != "anyOf"}, **kinds[0]}
