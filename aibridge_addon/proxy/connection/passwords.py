"""Check names and passwords of `--proxyauth` beside the event loop, and slow guessing down.

mitmproxy checks them in its hooks. With bcrypt, each check takes a third of a second in which no other client is
served. Here, a thread checks each pair once; a right one is remembered for minutes.

    name and password ─▶ remembered as right? ─▶ right
                      └▶ in turn for an address and name ─▶ wait after failures ─┬▶ remembered as wrong? ─▶ wrong
                                                                                └▶ in turn for an address ─▶ thread

One address may have many clients behind it (NAT). While a name that was guessed wrong waits, others of the address are
checked.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from weakref import WeakValueDictionary

from aibridge_addon.config.schema import Limits

logger = logging.getLogger(__name__)

DEFAULT_LIMITS = Limits()

Validate = Callable[[str, str], bool]

MAX_REMEMBERED = 4096
"""Maximum number of right ones, and of wrong ones, that are remembered."""
THREADS = 4
"""Passwords checked at the same time."""
MAX_WAITING = 256
"""Maximum number of different passwords that wait for their check."""
NAMES_OF_CLIENT = 4
"""One name may have up to this share (1 / 4) of the checks that may wait for an address."""
FIRST_DELAY = 0.25
"""Seconds that the next check waits after the first failure. It doubles with each further one."""
FORGIVEN_AFTER = 300.0
"""Seconds after which failures are forgotten."""
MAX_FAILURES = 4096
"""Maximum number of pairs of an address and a name whose failures are counted."""
MAX_LENGTH = 1024
"""Characters of a name or a password. Longer ones are wrong."""
WARNINGS_PER_MINUTE = 20
"""Maximum number of failures logged per minute. Clients cause them, so they could fill the log."""


class Verdict(Enum):
    RIGHT = auto()
    WRONG = auto()
    BUSY = auto()
    """Too many checks wait."""


class Passwords:
    """Used on one event loop."""

    def __init__(
        self,
        validate: Validate,
        *,
        limits: Limits = DEFAULT_LIMITS,
        blocks: bool = True,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`blocks`: `validate` takes long, so it runs in a thread."""
        self.limits = limits
        self._validate = validate
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="aibridge-passwords") if blocks else None
        self._clock = clock
        self._sleep = sleep
        self._key = secrets.token_bytes(32)
        self._right: Expiring[bytes, bool] = Expiring(MAX_REMEMBERED, clock)
        self._wrong: Expiring[bytes, bool] = Expiring(MAX_REMEMBERED, clock)
        self._failures: Expiring[tuple[str, str], _Failures] = Expiring(MAX_FAILURES, clock)
        """By address and name."""
        self._checks: dict[tuple[str, bytes], asyncio.Task[Verdict]] = {}
        self._waiting: Counter[tuple[str, ...]] = Counter()
        """Checks of an address, and of an address and a name, but those of passwords that were right before."""
        self._turns: WeakValueDictionary[tuple[str, ...], asyncio.Lock] = WeakValueDictionary()
        self._warned: list[float] = []

    def is_right(self, user: str, password: str) -> bool:
        """Return whether a password is remembered as right."""
        return self._right.get(self._digest(user, password)) is not None

    async def check(self, client: str, user: str, password: str) -> Verdict:
        """Check a password. `client`: the address that has sent it. Never raises."""
        if len(user) > MAX_LENGTH or len(password) > MAX_LENGTH:
            return Verdict.WRONG
        digest = self._digest(user, password)
        if self._right.get(digest) is not None:
            return Verdict.RIGHT
        # Requests of a client with one password wait for the same check. It goes on when one of them goes away.
        task = self._checks.get((client, digest))
        if task is None:
            was_right = self._right.had(digest)
            if not was_right and self._is_full(client, user):
                return Verdict.BUSY
            task = self._begin(digest, client, user, password, was_right=was_right)
        await asyncio.wait({task})
        return Verdict.BUSY if task.cancelled() else task.result()  # cancelled by `close`

    def _is_full(self, client: str, user: str) -> bool:
        of_client = self.limits.password_checks_per_client
        of_name = -(-of_client // NAMES_OF_CLIENT)
        return (
            self._waiting[client,] >= of_client
            or self._waiting[client, user] >= of_name
            or len(self._checks) >= MAX_WAITING
        )

    def _begin(self, digest: bytes, client: str, user: str, password: str, *, was_right: bool) -> asyncio.Task[Verdict]:
        # What was right minutes ago waits for nothing: a guess is not among it.
        check = (self._again if was_right else self._check)(digest, client, user, password)
        task = self._checks[client, digest] = asyncio.get_running_loop().create_task(check)
        counted = () if was_right else ((client,), (client, user))
        self._waiting.update(counted)

        def end(_: object) -> None:
            self._checks.pop((client, digest), None)
            self._waiting.subtract(counted)
            for each in counted:
                if not self._waiting[each]:
                    del self._waiting[each]

        task.add_done_callback(end)
        return task

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _digest(self, user: str, password: str) -> bytes:
        """Return what stands for a pair in memory. The key is this object's own."""
        both = f"{len(user)}:{user}{password}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, both, "sha256")

    async def _check(self, digest: bytes, client: str, user: str, password: str) -> Verdict:
        async with self._turn(client, user):
            failures = self._failures.get((client, user))
            if failures is not None and (wait := failures.until - self._clock()) > 0:
                await self._sleep(wait)
            if self._right.get(digest) is not None:
                return Verdict.RIGHT
            if self._wrong.get(digest) is None:
                async with self._turn(client):
                    is_right = await self._is_valid(digest, user, password)
                if is_right:
                    self._failures.drop((client, user))
                    return Verdict.RIGHT
            return self._failed(client, user)

    async def _again(self, digest: bytes, client: str, user: str, password: str) -> Verdict:
        """Check a password that was right before, whatever is guessed at the same address."""
        if await self._is_valid(digest, user, password):
            return Verdict.RIGHT
        self._right.drop(digest)
        return self._failed(client, user)

    def _turn(self, *of: str) -> asyncio.Lock:
        return self._turns.get(of) or self._turns.setdefault(of, asyncio.Lock())

    async def _is_valid(self, digest: bytes, user: str, password: str) -> bool:
        """Check a password, and remember the result. Never raises."""
        try:
            is_right = await self._validated(user, password)
        except Exception as e:  # noqa: BLE001 (a directory is away, or bcrypt refuses the form of a password)
            logger.warning("aibridge: a password of --proxyauth cannot be checked: %s", type(e).__name__)
            return False
        (self._right if is_right else self._wrong).put(digest, True, self.limits.password_lifetime)
        return is_right

    async def _validated(self, user: str, password: str) -> bool:
        if self._threads is None:
            return self._validate(user, password)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._validate, user, password)

    def _failed(self, client: str, user: str) -> Verdict:
        now, before = self._clock(), self._failures.get((client, user))
        count = before.count + 1 if before is not None else 1
        delay = min(FIRST_DELAY * 2 ** min(count - 1, 20), self.limits.password_delay)
        self._failures.put((client, user), _Failures(count, now + delay), FORGIVEN_AFTER)
        self._warned = [at for at in self._warned if now - at < 60]
        if len(self._warned) < WARNINGS_PER_MINUTE:
            self._warned.append(now)
            # No name: some clients put a key in its place.
            logger.warning("aibridge: authentication failed: client=%s failures=%d", client, count)
        return Verdict.WRONG


@dataclass(frozen=True, slots=True)
class _Failures:
    count: int
    until: float
    """The time before which the next password is not checked."""


class Expiring[Key, Value]:
    """A bounded cache whose entries expire."""

    def __init__(self, size: int, clock: Callable[[], float]) -> None:
        self._size = size
        self._clock = clock
        self._entries: OrderedDict[Key, tuple[Value, float]] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        found = self._entries.get(key)
        return found[0] if found is not None and found[1] > self._clock() else None

    def had(self, key: Key) -> bool:
        """Return whether there is an entry, although it may have expired."""
        return key in self._entries

    def put(self, key: Key, value: Value, seconds: float) -> None:
        """Keep a value. The oldest entry goes if there are too many."""
        self._entries.pop(key, None)
        self._entries[key] = value, self._clock() + seconds
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)

    def drop(self, key: Key) -> None:
        self._entries.pop(key, None)
