"""How passwords of `--proxyauth` are checked: once, beside the event loop, and slower after failures."""

from __future__ import annotations

import asyncio
import threading

import pytest

from aibridge_addon.proxy.connection.passwords import (
    DEFAULT_LIMITS,
    FIRST_DELAY,
    FORGIVEN_AFTER,
    MAX_LENGTH,
    MAX_REMEMBERED,
    NAMES_OF_CLIENT,
    THREADS,
    Passwords,
    Verdict,
)

ONE, OTHER = "192.0.2.1", "192.0.2.2"
RIGHT, WRONG, BUSY = Verdict
REMEMBERED_FOR, MAX_DELAY = DEFAULT_LIMITS.password_lifetime, DEFAULT_LIMITS.password_delay
MAX_WAITING_OF_CLIENT = DEFAULT_LIMITS.password_checks_per_client


class World:
    """A directory of passwords, and the time. `checked` lists each pair that was checked, `waits` each pause."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.checked: list[tuple[str, str]] = []
        self.waits: list[float] = []
        self.passwords = Passwords(self._validate, blocks=False, clock=lambda: self.now, sleep=self._sleep)

    def _validate(self, user: str, password: str) -> bool:
        self.checked.append((user, password))
        if password == "broken":
            raise ValueError("no such form")
        return password == f"of {user}"

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    async def check(self, user: str, password: str, client: str = ONE) -> Verdict:
        return await self.passwords.check(client, user, password)


@pytest.fixture
def world() -> World:
    return World()


async def test_a_right_password_is_checked_once_in_minutes(world: World) -> None:
    for _ in range(3):
        assert await world.check("ann", "of ann") is RIGHT
    assert world.passwords.is_right("ann", "of ann")
    assert await world.check("ann", "of ann", OTHER) is RIGHT
    assert len(world.checked) == 1
    world.now += REMEMBERED_FOR
    assert not world.passwords.is_right("ann", "of ann")
    assert await world.check("ann", "of ann") is RIGHT
    assert len(world.checked) == 2


@pytest.mark.parametrize(("user", "password"), [("ann", "of bob"), ("an", "nof ann"), ("annof", " ann"), ("", "")])
async def test_only_the_same_pair_is_remembered(world: World, user: str, password: str) -> None:
    assert await world.check("ann", "of ann") is RIGHT
    assert await world.check(user, password) is WRONG


async def test_no_password_is_kept_in_memory(world: World) -> None:
    await world.check("ann", "of ann")
    await world.check("ann", "secret text")
    kept = repr([*world.passwords._right._entries, *world.passwords._wrong._entries])
    assert "of ann" not in kept and "secret text" not in kept


async def test_the_oldest_of_too_many_is_forgotten(world: World) -> None:
    for number in range(MAX_REMEMBERED + 1):
        assert await world.check(f"user{number}", f"of user{number}") is RIGHT
    assert not world.passwords.is_right("user0", "of user0")
    assert world.passwords.is_right("user1", "of user1")


async def test_each_failure_makes_the_next_check_wait_longer(world: World) -> None:
    for number in range(8):
        assert await world.check("ann", f"guess {number}") is WRONG
    assert world.waits == [FIRST_DELAY * 2**number if number < 4 else MAX_DELAY for number in range(7)]


async def test_the_same_wrong_password_is_checked_once_and_slowed_all_the_same(world: World) -> None:
    for _ in range(3):
        assert await world.check("ann", "old") is WRONG
    assert (len(world.checked), world.waits) == (1, [FIRST_DELAY, FIRST_DELAY * 2])


async def test_failures_slow_neither_another_address_nor_another_name(world: World) -> None:
    for number in range(5):
        await world.check("ann", f"guess {number}")
    world.waits.clear()
    assert await world.check("ann", "of ann", OTHER) is RIGHT
    assert await world.check("bob", "of bob") is RIGHT
    assert world.waits == []


async def test_failures_are_forgiven_after_a_success_and_after_a_while(world: World) -> None:
    await world.check("ann", "guess")
    await world.check("ann", "of ann")
    world.waits.clear()
    await world.check("ann", "guess 2")
    await world.check("ann", "guess 3")
    assert world.waits == [FIRST_DELAY]
    world.now += FORGIVEN_AFTER + 1
    await world.check("ann", "guess 4")
    await world.check("ann", "guess 5")
    assert world.waits == [FIRST_DELAY, FIRST_DELAY]


async def test_a_check_that_raises_is_wrong_and_not_remembered(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert await world.check("ann", "broken") is WRONG
    assert len(world.checked) == 2
    assert "cannot be checked: ValueError" in caplog.text


async def test_a_very_long_password_is_wrong_without_a_check(world: World) -> None:
    assert await world.check("ann", "x" * (MAX_LENGTH + 1)) is WRONG
    assert world.checked == []


async def test_failures_are_logged_with_the_address_and_neither_name_nor_password(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(30):
        await world.check(f"user{number}", "secret text")
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"aibridge: authentication failed: client={ONE} failures=1"] * 20


class Slow:
    """A check that takes until it is let go, on threads of its own."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.count = 0
        self.passwords = Passwords(self._validate)

    def _validate(self, user: str, password: str) -> bool:
        self.count += 1
        self.go_on.wait(30)
        return password == f"of {user}"


async def test_a_check_neither_blocks_the_loop_nor_is_done_twice_at_a_time() -> None:
    slow = Slow()
    waiting = [asyncio.create_task(slow.passwords.check(ONE, "ann", "of ann")) for _ in range(5)]
    gone = asyncio.create_task(slow.passwords.check(ONE, "ann", "of ann"))
    while slow.count == 0:  # noqa: ASYNC110 (a thread counts)
        await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    slow.go_on.set()
    assert await asyncio.gather(*waiting) == [RIGHT] * 5
    assert slow.count == 1
    slow.passwords.close()


async def test_one_address_uses_one_thread_and_has_a_limit() -> None:
    slow = Slow()
    guesses = [
        asyncio.create_task(slow.passwords.check(ONE, f"user{number}", "guess"))
        for number in range(MAX_WAITING_OF_CLIENT)
    ]
    while slow.count == 0:  # noqa: ASYNC110 (a thread counts)
        await asyncio.sleep(0)
    assert await slow.passwords.check(ONE, "ann", "of ann") is BUSY
    other = asyncio.create_task(slow.passwords.check(OTHER, "ann", "of ann"))
    while slow.count == 1:  # noqa: ASYNC110 (a thread counts)
        await asyncio.sleep(0)
    slow.go_on.set()
    assert await other is RIGHT
    assert await asyncio.gather(*guesses) == [WRONG] * MAX_WAITING_OF_CLIENT
    assert not slow.passwords._waiting and not slow.passwords._checks and not slow.passwords._turns
    slow.passwords.close()


async def test_guesses_of_one_name_leave_room_for_the_others_of_an_address() -> None:
    slow = Slow()
    of_name = MAX_WAITING_OF_CLIENT // NAMES_OF_CLIENT
    guesses = [asyncio.create_task(slow.passwords.check(ONE, "ann", f"guess {n}")) for n in range(of_name)]
    await asyncio.sleep(0)
    assert await slow.passwords.check(ONE, "ann", "guess") is BUSY
    bob = asyncio.create_task(slow.passwords.check(ONE, "bob", "of bob"))
    await asyncio.sleep(0)
    slow.go_on.set()
    assert await bob is RIGHT
    assert await asyncio.gather(*guesses) == [WRONG] * of_name
    slow.passwords.close()


async def test_a_name_that_waits_after_failures_delays_no_other_of_its_address() -> None:
    let_go = asyncio.Event()

    async def sleep(_seconds: float) -> None:
        await let_go.wait()

    passwords = Passwords(lambda user, password: password == f"of {user}", blocks=False, sleep=sleep)
    assert await passwords.check(ONE, "ann", "guess") is WRONG
    guess = asyncio.create_task(passwords.check(ONE, "ann", "guess 2"))
    await asyncio.sleep(0)
    assert await asyncio.wait_for(passwords.check(ONE, "bob", "of bob"), 30) is RIGHT
    assert not guess.done()
    let_go.set()
    assert await guess is WRONG


async def test_what_was_right_before_waits_for_no_guess_of_the_same_name_and_address(world: World) -> None:
    assert await world.check("ann", "of ann") is RIGHT
    world.now += REMEMBERED_FOR
    for number in range(4):
        await world.check("ann", f"guess {number}")
    waits = list(world.waits)
    assert await world.check("ann", "of ann") is RIGHT
    assert world.waits == waits
    assert world.checked[-1] == ("ann", "of ann")
    await world.check("ann", "guess 5")
    assert len(world.waits) == len(waits) + 1, "and it forgives none"


async def test_what_was_right_before_has_room_while_an_address_is_full() -> None:
    slow = Slow()
    slow.go_on.set()
    slow.passwords.limits = DEFAULT_LIMITS.model_copy(update={"password_lifetime": 1e-9})
    assert await slow.passwords.check(ONE, "ann", "of ann") is RIGHT
    slow.go_on.clear()
    guesses = [
        asyncio.create_task(slow.passwords.check(ONE, f"user{n}", "guess")) for n in range(MAX_WAITING_OF_CLIENT)
    ]
    await asyncio.sleep(0)
    assert await slow.passwords.check(ONE, "bob", "of bob") is BUSY
    ann = asyncio.create_task(slow.passwords.check(ONE, "ann", "of ann"))
    while slow.count < 3:  # noqa: ASYNC110 (a thread counts)
        await asyncio.sleep(0)
    slow.go_on.set()
    assert await ann is RIGHT
    assert await asyncio.gather(*guesses) == [WRONG] * MAX_WAITING_OF_CLIENT
    slow.passwords.close()


async def test_a_password_that_is_not_right_any_more_is_an_ordinary_failure(world: World) -> None:
    assert await world.check("ann", "of ann") is RIGHT
    world.now += REMEMBERED_FOR
    world.passwords._validate = lambda *_: False
    assert await world.check("ann", "of ann") is WRONG
    assert await world.check("ann", "of ann") is WRONG
    assert world.waits == [FIRST_DELAY]


async def test_checks_that_wait_while_the_option_changes_are_not_lost() -> None:
    go_on, begun = threading.Event(), threading.Semaphore(0)

    def validate(user: str, password: str) -> bool:
        begun.release()
        return go_on.wait(30)

    passwords = Passwords(validate)
    checks = [asyncio.ensure_future(passwords.check(f"198.51.100.{n}", "ann", "of ann")) for n in range(THREADS)]
    for _ in range(THREADS):
        assert await asyncio.to_thread(begun.acquire, timeout=30)
    waiting = asyncio.ensure_future(passwords.check(OTHER, "ann", "of bob"))
    while not passwords._threads or passwords._threads._work_queue.empty():  # noqa: ASYNC110 (it has no event)
        await asyncio.sleep(0)
    passwords.close()
    assert await waiting is BUSY
    go_on.set()
    assert await asyncio.gather(*checks) == [RIGHT] * THREADS
