"""Why a request is not answered. Each protocol words a refusal in its own way."""

import math

# kind -> HTTP status. The routes of OpenAI and TEI translate the kind into their own types.
STATUS = {
    "invalid": 422,  # the request is well-formed JSON, but a field is wrong
    "unauthorized": 401,
    "unknown": 404,  # no such model, task or route
    "too large": 413,  # can never be admitted
    "overloaded": 429,  # can be admitted later
    "failed": 500,  # the computation raised an exception
    "draining": 503,  # the server stops
    "deadline": 504,  # the answer was not ready in time
}


class Refusal(Exception):
    """A request that gets an error instead of an answer.

    Attributes:
        kind: one of `STATUS`.
        param: the field that is wrong; empty if it is none in particular.
        retry_after: seconds after which the client may try again; only for "overloaded" and "draining".
        status: the HTTP status.
    """

    def __init__(self, kind: str, message: str, *, param: str = "", retry_after: float = 0.0):
        super().__init__(message)
        self.kind, self.param, self.retry_after = kind, param, retry_after
        self.status = STATUS[kind]

    @property
    def headers(self) -> dict[str, str]:
        """The headers that tell a client when to try again: `Retry-After`, and OpenAI's `retry-after-ms`."""
        if not self.retry_after:
            return {"WWW-Authenticate": "Bearer"} if self.kind == "unauthorized" else {}
        return {
            "Retry-After": str(math.ceil(self.retry_after)),
            "retry-after-ms": str(math.ceil(1000 * self.retry_after)),
        }
