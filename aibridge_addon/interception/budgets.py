"""Budgets: what a request may still use, in which window, and for whom. Values in, values out.

    admit ─▶ accounts of the request ─▶ spent + reserved < limit ─▶ its estimate is reserved ─▶ token rows ─▶ spent
                                              └─ no ─▶ Exceeded

An account is a budget for one subject, such as one actor. What it has spent is the sum of two parts:

- what other processes have spent, and what was spent before the start. `update` sets it from the database.
- what this process has spent since its start. `count` adds each of its token rows.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from aibridge_addon import records
from aibridge_addon.config.budgets import Budget, Period, Unit
from aibridge_addon.credentials.redaction import REDACTED
from aibridge_addon.interception.accounts import Account, Exceeded, Key, Sums, Window, exceeded
from aibridge_addon.records import BudgetUsed, Spent, TokenUsage
from aibridge_addon.wire.json_object import JSONObject
from aibridge_addon.wire.json_values import as_count, as_dict

BYTES_PER_TOKEN = 4
USUAL_OUTPUT = 4_096
"""Tokens. The output that is reserved if the request has no limit and no answers are known."""
MAX_OUTPUT = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Names of the limit of the output in requests. Converse has it in `inferenceConfig`."""
RECENT = 20
"""Answers of one actor and model whose mean is the expected output."""
MAX_KNOWN = 10_000
"""Maximum number of pairs of actor and model whose answers are known, and of interceptions under way."""
NEGLIGIBLE = 1e-9
"""Sums of floats that are smaller are zero."""
RESERVED_FOR = timedelta(hours=1)
"""A reservation ends after this time, so that an answer whose end is not seen does not take up a budget for ever."""


def window(period: Period, zone: tzinfo, moment: datetime) -> Window:
    """Return the day, the week from Monday on, or the month in which `moment` is, by the calendar of `zone`.

    A day begins at the first 00:00 of its date or, if a change of the clock skips that, right after the change.
    """
    today = moment.astimezone(zone).date()
    match period:
        case "day":
            first, after = today, today + timedelta(days=1)
        case "week":
            first = today - timedelta(days=today.weekday())
            after = first + timedelta(days=7)
        case "month":
            first = today.replace(day=1)
            after = (first + timedelta(days=31)).replace(day=1)
    return Window(_beginning(first, zone), _beginning(after, zone))


def _beginning(day: date, zone: tzinfo) -> datetime:
    # With fold=0, a time that occurs twice is the first of them. A skipped time has the offset before the change, so
    # that it is the moment of the change itself.
    return datetime.combine(day, time(fold=0), zone).astimezone(UTC)


class Party(NamedTuple):
    """Who sends a request to what."""

    actor: str
    groups: tuple[str, ...]
    provider: str
    model: str


def subjects(budget: Budget, party: Party) -> tuple[str, ...]:
    """Return for what a budget counts a request. Nothing: it does not apply to the request."""
    match = budget.match
    groups = tuple(group for group in party.groups if _matches(match.groups, group))
    if (
        not _matches(match.actors, party.actor)
        or not _matches(match.providers, party.provider)
        or not _matches(match.models, party.model)
        or (match.groups and not groups)
    ):
        return ()
    match budget.per:
        case "actor":
            return (party.actor,)
        case "group":
            return groups
        case "provider":
            return (party.provider,)
        case "model":
            return (party.model,)
        case "all":
            return ("all",)


def _as_recorded(budget: Budget, recorded_name: Callable[[str], str]) -> Budget:
    """Return the budget that also applies to names as rows have them."""

    def both(patterns: tuple[str, ...]) -> tuple[str, ...]:
        recorded = (recorded_name(pattern).replace(REDACTED, MARK) for pattern in patterns)
        return tuple(dict.fromkeys((*patterns, *recorded)))

    names = {"groups": both(budget.match.groups), "models": both(budget.match.models)}
    return budget.model_copy(update={"match": budget.match.model_copy(update=names)})


MARK = REDACTED.replace("[", "[[]")
"""The pattern that matches a mark."""


def _matches(patterns: Collection[str], name: str) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a request is expected to use."""

    usd: float
    tokens: int
    requests: int = 1

    def of(self, unit: Unit) -> float:
        amount: float = getattr(self, unit)
        return amount


@dataclass(slots=True)
class _Reservation:
    keys: tuple[Key, ...]
    amounts: dict[Unit, float]
    until: datetime
    answered: bool = False
    """A token row was emitted, which settles the reservation."""


Price = Callable[[str, int, int], float | None]
"""Return what a number of input and of output tokens of a model costs. None: it is not known."""


def _unpriced(_model: str, _inputs: int, _outputs: int) -> None:
    return None


def _maybe_priced(_model: str) -> bool:
    return False


class Budgets:
    """The accounts of all budgets. Used on one event loop."""

    def __init__(
        self,
        budgets: Sequence[Budget],
        groups_of: Callable[[str], tuple[str, ...]],
        *,
        now: Callable[[], datetime],
        emit: records.Emit,
        warn: Callable[[str, str], None],
        recorded_name: Callable[[str], str] = str,
    ) -> None:
        """Usage is counted by rows, so everything else is compared with names as rows have them.

        Args:
            groups_of: Return the configured groups of an actor.
            warn: Log an event and an account's state.
            recorded_name: Return a model's or a group's name as rows have it.
        """
        self._recorded_name = recorded_name
        self._budgets = {budget.name: _as_recorded(budget, recorded_name) for budget in budgets}
        self._groups_of = groups_of
        self._now = now
        self._emit = emit
        self._warn = warn
        self._accounts: dict[Key, Account] = {}
        self._reservations: OrderedDict[str, _Reservation] = OrderedDict()
        self._parties: OrderedDict[str, Party] = OrderedDict()
        """Interceptions of this process whose start was counted, and their end was not."""
        self._outputs: OrderedDict[tuple[str, str], deque[int]] = OrderedDict()
        self._deployments: OrderedDict[str, str] = OrderedDict()
        """Deployments of interceptions under way whose requests name no model."""
        self._answered: OrderedDict[tuple[str, str], str] = OrderedDict()
        """The model behind each deployment of a provider."""
        self._reported: dict[Key, float] = {}

    # --- admission --------------------------------------------------------------------------------------------

    def admit(
        self,
        id: str,
        party: Party,
        size: int,
        max_output: int | None,
        price: Price,
        deployment: str = "",
        *,
        is_never_priced: Callable[[str], bool] = _maybe_priced,
    ) -> Exceeded | None:
        """Reserve what a request is expected to use, unless a budget that applies to it is used up.

        Args:
            size: Bytes of the request.
            max_output: Tokens that the request allows as output.
            deployment: What a request without a model names instead. It counts as the model that answered last.
            is_never_priced: Return whether it is known that no answer of a model has a price.
        """
        if not party.model:
            self._deployments[id] = deployment
            _bound(self._deployments)
            party = party._replace(model=self._answered.get((party.provider, deployment), deployment))
        accounts = list(self._accounts_of(party))
        for account in accounts:
            if account.is_exceeded and account.budget.over == "refuse":
                return exceeded(account)
        for account in accounts:
            if account.refuses_unpriced and is_never_priced(party.model):
                return exceeded(account, party.model)
        if accounts:
            priced = price if any(account.budget.unit == "usd" for account in accounts) else _unpriced
            self._reserve(id, accounts, self._estimate(party, size, max_output, priced))
        return None

    def _estimate(self, party: Party, size: int, max_output: int | None, price: Price) -> Estimate:
        known = self._outputs.get((party.actor, party.model))
        output = sum(known) // len(known) if known else max_output or USUAL_OUTPUT
        inputs = size // BYTES_PER_TOKEN
        cost = price(party.model, inputs, output)
        if cost is None:  # a model without output, such as one for embeddings
            cost = price(party.model, inputs, 0) or 0.0
        return Estimate(cost, inputs + output)

    def _reserve(self, id: str, accounts: Iterable[Account], estimate: Estimate) -> None:
        keys = tuple(Key(account.budget.name, account.subject) for account in accounts)
        amounts: dict[Unit, float] = {unit: estimate.of(unit) for unit in ("usd", "tokens", "requests")}
        self._reservations[id] = _Reservation(keys, amounts, self._now() + RESERVED_FOR)
        self._change(keys, amounts)

    def watch(self, id: str, emit: records.Emit) -> records.Emit:
        """Return an `emit` that also releases the reservation of an interception that ends without an answer.

        `count` releases it, too, but only after the records were prepared.
        """

        def emit_and_watch(record: records.Record) -> None:
            emit(record)
            reservation = self._reservations.get(id)
            if reservation is None:
                return
            if isinstance(record, TokenUsage):
                reservation.answered = True  # `count` settles it when the cost is known
            elif isinstance(record, records.InterceptionEnded) and not (reservation.answered or record.turns):
                self._release(id)

        return emit_and_watch

    def near(self, id: str) -> str | None:
        """Return the state of the budget that a request in flight has used most, if one is near its limit."""
        reservation = self._reservations.get(id)
        accounts = [self._current(key) for key in reservation.keys] if reservation is not None else []
        found = max((account for account in accounts if account.is_near), key=lambda a: a.used, default=None)
        return None if found is None else found.state

    def _release(self, id: str) -> None:
        if (reservation := self._reservations.pop(id, None)) is not None:
            self._change(reservation.keys, {unit: -amount for unit, amount in reservation.amounts.items()})

    def _settle(self, id: str, spent: Spent) -> None:
        """Reduce a reservation by what was spent of it."""
        if (reservation := self._reservations.get(id)) is None:
            return
        used: dict[Unit, float] = {"usd": spent.usd, "tokens": spent.tokens, "requests": spent.requests}
        settled = {unit: min(used[unit], amount) for unit, amount in reservation.amounts.items()}
        for unit, amount in settled.items():
            reservation.amounts[unit] -= amount
        self._change(reservation.keys, {unit: -amount for unit, amount in settled.items()})

    def _change(self, keys: Iterable[Key], amounts: Mapping[Unit, float]) -> None:
        for key in keys:
            account = self._current(key)
            changed = account.reserved + amounts[account.budget.unit]
            account.reserved = changed if changed > NEGLIGIBLE else 0.0

    # --- usage of this process --------------------------------------------------------------------------------

    def count(self, record: records.Record) -> None:
        """Count a prepared record of this process."""
        match record:
            case records.InterceptionStarted():
                groups = record.metadata.get(GROUPS)
                named = groups if isinstance(groups, str) else None
                begun = Spent(record.initiator_id, named, record.provider_name, record.model)
                self._parties[record.id] = self._party(begun)
                _bound(self._parties)
            case TokenUsage():
                self._count_usage(record)
            case records.InterceptionEnded():
                party = self._parties.pop(record.interception_id, None)
                deployment = self._deployments.pop(record.interception_id, "")
                if party is not None and deployment and record.model:
                    self._answered[party.provider, deployment] = record.model
                    _bound(self._answered)
                if party is not None and record.turns:
                    model = party.model or record.model or ""
                    spent = Spent(party.actor, None, party.provider, model, requests=1)
                    self._book(party._replace(model=model), spent, record.ended_at)
                self._release(record.interception_id)

    def _count_usage(self, record: TokenUsage) -> None:
        party = self._parties.get(record.interception_id)
        if party is None:  # begun by another process, whose rows are read from the database
            return
        party = party._replace(model=party.model or record.model)
        spent = Spent(
            party.actor,
            None,
            party.provider,
            party.model,
            usd=record.cost_usd or 0.0,
            tokens=record.input_tokens
            + record.output_tokens
            + record.cache_read_input_tokens
            + record.cache_write_input_tokens,
            unpriced=record.cost_usd is None,
        )
        self._book(party, spent, record.created_at)
        self._settle(record.interception_id, spent)
        if record.kind == "answer":
            self._outputs.setdefault((party.actor, party.model), deque(maxlen=RECENT)).append(record.output_tokens)
            self._outputs.move_to_end((party.actor, party.model))
            _bound(self._outputs)

    def _book(self, party: Party, spent: Spent, at: datetime) -> None:
        for account in self._accounts_of(party):
            account.book(spent, at)
            self._report(account)

    # --- what other processes report --------------------------------------------------------------------------

    def windows(self) -> dict[tuple[Period, tzinfo], Window]:
        """Return the current window of each period and time zone."""
        now = self._now()
        pairs = {(budget.period, budget.timezone) for budget in self._budgets.values()}
        return {(period, zone): window(period, zone, now) for period, zone in pairs}

    @property
    def counts_groups(self) -> bool:
        return any(budget.per == "group" or budget.match.groups for budget in self._budgets.values())

    @property
    def counts_requests(self) -> bool:
        return any(budget.unit == "requests" for budget in self._budgets.values())

    def reserved(self) -> Mapping[tuple[str, str], float]:
        """Return what requests in flight in this process have reserved."""
        now = self._now()
        for id in [id for id, reservation in self._reservations.items() if reservation.until <= now]:
            self._release(id)
        return {key: account.reserved for key, account in self._accounts.items() if account.reserved > 0}

    def total(self, spent: Mapping[tuple[Period, tzinfo], Iterable[Spent]]) -> Mapping[tuple[str, str], Sums]:
        """Return what was spent for each budget and subject. May be called on any thread."""
        sums: dict[tuple[str, str], Sums] = {}
        for calendar, parts in spent.items():
            budgets = [each for each in self._budgets.values() if (each.period, each.timezone) == calendar]
            for part in parts:
                party = self._party(part)
                for budget in budgets:
                    for subject in subjects(budget, party):
                        sums.setdefault((budget.name, subject), Sums()).add(part)
        return sums

    def update(
        self,
        windows: Mapping[tuple[Period, tzinfo], tuple[datetime, datetime]],
        others: Mapping[tuple[str, str], Sums],
        reserved: Mapping[tuple[str, str], float],
    ) -> None:
        """Replace what is known of other processes: what they spent in these windows, and what they have reserved."""
        known = [Key(*key) for key in (*others, *reserved)]
        for key in {*self._accounts, *(key for key in known if key.budget in self._budgets)}:
            account = self._current(key)
            if windows.get((account.budget.period, account.budget.timezone)) == account.window:
                account.others = others.get(key) or Sums()
            account.reserved_by_others = reserved.get(key, 0.0)
            self._report(account)
        self._drop_idle()

    def asking(self, actor: str, groups: Sequence[str], provider: str, model: str) -> Party:
        """Return who sends a request. `groups`: those that the request names."""
        named, model = self._recorded_name(",".join(groups)), self._recorded_name(model)
        return self._party(Spent(actor, named, provider, model))

    def _party(self, part: Spent) -> Party:
        given = tuple(part.groups.split(",")) if part.groups else ()
        configured = self._groups_of(part.actor)
        return Party(part.actor, tuple(dict.fromkeys((*configured, *given))), part.provider, part.model)

    # --- accounts ---------------------------------------------------------------------------------------------

    def _accounts_of(self, party: Party) -> Iterator[Account]:
        for budget in self._budgets.values():
            for subject in subjects(budget, party):
                yield self._current(Key(budget.name, subject))

    def _current(self, key: Key) -> Account:
        """Return an account, moved to the current window."""
        now = self._now()
        account = self._accounts.get(key)
        if account is None:
            budget = self._budgets[key.budget]
            account = Account(budget, key.subject, window(budget.period, budget.timezone, now))
            self._accounts[key] = account
        elif not account.window.start <= now < account.window.end:
            account.move(window(account.budget.period, account.budget.timezone, now))
        return account

    def _report(self, account: Account) -> None:
        """Report an account's share if it has changed, and log once per window that it is near its limit."""
        key = Key(account.budget.name, account.subject)
        if self._reported.get(key, 0.0) != account.used:
            self._reported[key] = account.used
            self._emit(BudgetUsed(*key, names_actor=account.budget.per == "actor", ratio=account.used))
        if account.is_near:
            self._warn_once(account, "is used up" if account.used >= 1 else "is near its limit")
        if account.unpriced and account.budget.unpriced != "ignore":
            self._warn_once(account, "has usage without a known price")

    def _warn_once(self, account: Account, event: str) -> None:
        if event not in account.warned:
            account.warned.add(event)
            self._warn(event, f"{account.state}; subject={account.subject!r}")

    def _drop_idle(self) -> None:
        """Forget accounts without any usage, of which there is one for each name that a client has used."""
        for key, account in list(self._accounts.items()):
            if not (account.reserved or account.reserved_by_others or account.has_usage):
                del self._accounts[key]
                self._reported.pop(key, None)


GROUPS = "actor_groups"
"""Member of an interception's metadata: the groups that its request named, separated by commas."""


def max_output(body: JSONObject | None) -> int | None:
    """Return the tokens that a request allows as output."""
    if body is None:
        return None
    limits = [as_count(body.get(name)) for name in MAX_OUTPUT]
    limits.append(as_count(as_dict(body.get("inferenceConfig")).get("maxTokens")))
    return next(filter(None, limits), None)


def _bound(known: OrderedDict[Any, Any]) -> None:
    while len(known) > MAX_KNOWN:
        known.popitem(last=False)
