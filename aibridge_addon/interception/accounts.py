"""Accounts of budgets: a budget for one subject, such as one actor, in one window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from aibridge_addon.config.budgets import Budget, Unit
from aibridge_addon.records import Spent

MAX_NAME = 128
"""Characters of a model's name in a message. Requests name any."""


class Window(NamedTuple):
    """A period of a budget, in UTC. The end is not part of it."""

    start: datetime
    end: datetime


class Key(NamedTuple):
    budget: str
    subject: str


@dataclass(slots=True)
class Sums:
    usd: float = 0.0
    tokens: int = 0
    requests: int = 0
    unpriced: int = 0

    def add(self, spent: Spent) -> None:
        self.usd += spent.usd
        self.tokens += spent.tokens
        self.requests += spent.requests
        self.unpriced += spent.unpriced

    def of(self, unit: Unit) -> float:
        amount: float = getattr(self, unit)
        return amount


@dataclass(slots=True)
class Account:
    """A budget for one subject in one window."""

    budget: Budget
    subject: str
    window: Window
    others: Sums = field(default_factory=Sums)
    """Spent by other processes, and before the start."""
    own: Sums = field(default_factory=Sums)
    """Spent by this process since its start."""
    reserved: float = 0.0
    """Reserved by requests in flight in this process."""
    reserved_by_others: float = 0.0
    warned: set[str] = field(default_factory=set)
    """What was logged in this window."""
    left: tuple[Window, Sums] | None = None
    """The window before this one, and what this process spent in it. A clock that is set back leads there again."""

    def move(self, window: Window) -> None:
        """Begin another window."""
        found = self.left[1] if self.left is not None and self.left[0] == window else Sums()
        self.left = (self.window, self.own)
        self.window, self.own, self.others, self.warned = window, found, Sums(), set()

    def book(self, spent: Spent, at: datetime) -> None:
        """Count usage of this process in the window of its time: this one, or the one before."""
        for window, sums in ((self.window, self.own), *([self.left] if self.left is not None else [])):
            if window.start <= at < window.end:
                sums.add(spent)

    @property
    def has_usage(self) -> bool:
        """Whether anything was spent in this window, or by this process in the one before."""
        left = Sums() if self.left is None else self.left[1]
        return self.others != Sums() or self.own != Sums() or left != Sums()

    @property
    def spent(self) -> float:
        return self.others.of(self.budget.unit) + self.own.of(self.budget.unit)

    @property
    def used(self) -> float:
        """The used share of the limit."""
        return self.spent / self.budget.limit

    @property
    def is_near(self) -> bool:
        return self.used >= self.budget.warn_at

    @property
    def unpriced(self) -> bool:
        """Whether the amount in US dollars is not known."""
        return self.budget.unit == "usd" and self.others.unpriced + self.own.unpriced > 0

    @property
    def refuses_unpriced(self) -> bool:
        """Whether a request without a price is refused."""
        return self.budget.unit == "usd" and self.budget.unpriced == "refuse" and self.budget.over == "refuse"

    @property
    def resets_at(self) -> str:
        """The end of the window, by the clock of the budget's zone."""
        return self.window.end.astimezone(self.budget.timezone).isoformat()

    @property
    def is_exceeded(self) -> bool:
        reserved = self.reserved + self.reserved_by_others
        return self.spent + reserved >= self.budget.limit or (self.unpriced and self.budget.unpriced == "refuse")

    @property
    def state(self) -> str:
        """The state as a client's header and the log have it."""
        return f"name={self.budget.name}; used={self.used:.2f}; resets={self.resets_at}"


@dataclass(frozen=True, slots=True)
class Exceeded:
    """Why a budget does not admit a request."""

    message: str
    details: Mapping[str, Any]
    """Further members of the error that the client gets."""


def exceeded(account: Account, unpriced_model: str | None = None) -> Exceeded:
    """Return why an account admits no request.

    Args:
        unpriced_model: The request's model, if the account refuses it only because it has no price.
    """
    budget, unit = account.budget, account.budget.unit
    resets_at = account.resets_at
    spent = _rounded(account.spent, unit)
    whose = "" if budget.per == "all" else f" of {budget.per} {account.subject}"
    if unpriced_model is not None:
        name = f"model {unpriced_model[:MAX_NAME]}" if unpriced_model else "this request"
        why = f"refuses usage without a known price, and {name} has none: {_amount(spent, unit)} are spent"
    elif account.unpriced and budget.unpriced == "refuse":
        why = f"has usage without a known price, so that its {unit} cannot be limited: {_amount(spent, unit)} are known"
    else:
        why = f"is used up: {_number(spent, unit)} of {_amount(_rounded(budget.limit, unit), unit)} are spent"
        reserved = account.reserved + account.reserved_by_others
        if spent < budget.limit and reserved:
            why += f", and {_amount(_rounded(reserved, unit), unit)} are reserved by requests in flight"
    return Exceeded(
        f"budget {budget.name}{whose} {why}. It resets at {resets_at}.",
        {
            "code": "budget_exceeded",
            "budget": {
                "name": budget.name,
                "per": budget.per,
                "spent": spent,
                "limit": _rounded(budget.limit, unit),
                "unit": unit,
                "resets_at": resets_at,
            },
        },
    )


SMALL = 0.1
"""US dollars. Smaller amounts are written with four decimals."""


def _rounded(amount: float, unit: Unit) -> float:
    return round(amount, 6) if unit == "usd" else round(amount)


def _amount(amount: float, unit: Unit) -> str:
    return f"{_number(amount, unit)} {'USD' if unit == 'usd' else unit}"


def _number(amount: float, unit: Unit) -> str:
    if unit != "usd":
        return str(amount)
    is_small = 0 < amount < SMALL
    return f"{amount:.{4 if is_small else 2}f}"
