"""The three environment variables that billing needs: without one of them billing is off, and casts go on."""

from collections.abc import Mapping
from typing import Final

from gateway.config.errors import Position, Problem, found
from gateway.config.interpolation import Variables
from gateway.config.settings import Settings
from gateway.policy.money import AmountError, microcents_from_cents

COST: Final = "COST_PER_CAST_CENTS"


class BillingVariables:
    """What the environment says of billing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: tuple[Problem, ...] = ()
        cost = environ.get(COST, "").strip()
        try:
            microcents_from_cents(cost or "0")
        except AmountError as error:
            message = f"{error.expected}, found {found(cost)}"
            self.problems = (Problem(position=Position(file="environment"), key=COST, message=message),)

    def variables(self) -> Variables:
        """The variables for one set of files.

        ``"${COST_PER_CAST_CENTS}"`` in a policy counts as 0 where the variable is missing, blank or, so that it is told
        once and not at each place that uses it, malformed.
        """
        environ = {name: value for name, value in self._environ.items() if name != COST or not self.problems}
        return Variables(environ, {COST: "0"})

    def missing(self, settings: Settings) -> tuple[str, ...]:
        """The variables billing lacks. A key that ``config.yaml`` has from elsewhere is not missing."""
        names = []
        if settings.billing.stripe_secret_key is None:
            names.append("STRIPE_SECRET_KEY")
        if not settings.billing.stripe_webhook_secrets:
            names.append("STRIPE_WEBHOOK_SECRET")
        if not self._environ.get(COST, "").strip():
            names.append(COST)
        return tuple(names)

    def warnings(self, settings: Settings) -> tuple[str, ...]:
        """One sentence for each variable billing lacks."""
        return tuple(
            f"billing is off: {name} is {'blank' if name in self._environ else 'not set'}"
            + (", policies count it as 0" if name == COST else "")
            for name in self.missing(settings)
        )
