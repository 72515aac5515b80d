"""Who may write."""

import hmac
import os
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

TOKEN_VARIABLE = "HEADRACE_API_TOKEN"
bearer = HTTPBearer(auto_error=False, description=f"the value of {TOKEN_VARIABLE}, where that is set")


def token_from_environment() -> str | None:
    """The token that guards what writes; None, when the variable is not set or empty: then nothing is guarded."""
    return os.environ.get(TOKEN_VARIABLE) or None


async def require_token(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> None:
    """Raises 401 unless the request carries the token. Takes as long for a wrong one as for a right one."""
    token: str | None = request.app.state.token
    given = credentials.credentials if credentials else ""
    if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
        raise HTTPException(
            401,
            "send the token of the API: Authorization: Bearer <token>",
            headers={"WWW-Authenticate": "Bearer"},
        )
