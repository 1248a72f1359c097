"""What Schemathesis can't know: an Idempotency-Key means "this very request again", so random ones must never repeat."""

import uuid
from typing import Any

import schemathesis


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:  # Schemathesis gives them no public types
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and case.meta is not None and case.meta.generation.mode.is_positive:
        case.headers["Idempotency-Key"] = str(uuid.uuid4())
