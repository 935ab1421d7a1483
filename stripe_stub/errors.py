"""All that is not what was asked for, in Stripe's shape: ``{"error": {"type", "message", "code", "param", …}}``."""

from typing import Any

from aiohttp import web


class ApiError(Exception):
    """Raised anywhere below an endpoint; `api.Api` turns it into the answer."""

    def __init__(
        self, status: int, kind: str, message: str, *, code: str | None = None, param: str | None = None, **more: str
    ) -> None:
        super().__init__(message)
        self.status = status
        self.fields: dict[str, Any] = {"type": kind, "message": message, **more}
        if code is not None:
            self.fields["code"] = code
            self.fields["doc_url"] = f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}"
        if param is not None:
            self.fields["param"] = param

    def body(self) -> dict[str, Any]:
        return {"error": self.fields}


class CardDeclinedError(ApiError):
    def __init__(self) -> None:
        super().__init__(
            402, "card_error", "Your card was declined.", code="card_declined", decline_code="generic_decline"
        )


def invalid(message: str, *, code: str | None = None, param: str | None = None) -> ApiError:
    return ApiError(400, "invalid_request_error", message, code=code, param=param)


def missing_parameter(param: str) -> ApiError:
    return invalid(f"Missing required param: {param}.", code="parameter_missing", param=param)


def no_such(kind: str, identifier: str, *, param: str = "id") -> ApiError:
    """As Stripe: 404 where the address names what is missing, 400 where a parameter does."""
    status = 404 if param == "id" else 400
    words = kind.replace("checkout.session", "checkout session").replace("_", " ")
    return ApiError(
        status, "invalid_request_error", f"No such {words}: '{identifier}'", code="resource_missing", param=param
    )


def refused_over_http(error: web.HTTPException, method: str, path: str) -> ApiError:
    """aiohttp's own refusals (no such route, method not allowed, body too long)."""
    if error.status in {404, 405}:
        return ApiError(
            404,
            "invalid_request_error",
            f"Unrecognized request URL ({method}: {path}). Please see https://stripe.com/docs.",
        )
    return ApiError(error.status, "invalid_request_error", f"{error.reason}.")
