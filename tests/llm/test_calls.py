"""The caller and the store against a small Gemini that fails in every way, through the client that users have."""

import asyncio
import contextlib
import os
import pathlib
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from msm_jax.errors import Interrupted, UserError
from msm_jax.llm.caller import Caller, Limits
from msm_jax.llm.request import Finish, Reply, Status, Unavailable, Usage
from msm_jax.llm.store import CallStore
from tests.corpus.gemini import MODEL, PRICE, caller, lists, server, texts
from tests.gemini_server import KEY, PER_CALL, PER_REPLY, identity


@contextlib.contextmanager
def serving(**settings):
    the_server = server(**settings)
    try:
        yield the_server
    finally:
        the_server.stop()


def ask(the_caller, requests):
    async def go():
        try:
            return await the_caller.ask(requests)
        finally:
            await the_caller.generator.close()
            the_caller.store.close()

    return asyncio.run(go())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with serving() as the_server:
        return ask(caller(the_server, tmp_path_factory.mktemp("calls") / "calls.sqlite"), texts(12) + lists(12))


def test_equal_requests_are_asked_once_and_a_rerun_asks_nothing(tmp_path):
    with serving() as the_server:
        first = ask(caller(the_server, tmp_path / "calls.sqlite"), texts(5) * 3)
        again = ask(caller(the_server, tmp_path / "calls.sqlite"), texts(6))
        assert the_server.calls == 6
    assert first == again[:5] * 3


@pytest.mark.parametrize("kind", PER_CALL + PER_REPLY)
def test_every_failure_is_got_over(kind, tmp_path, undisturbed):
    with serving(failing=0.5, kinds=(kind,), seed=1) as the_server:
        the_caller = caller(the_server, tmp_path / "calls.sqlite", timeout=1.5 if kind == "hang" else 5.0)
        assert ask(the_caller, texts(12) + lists(12)) == undisturbed
        assert the_server.calls > 24
        assert set(the_server.good.values()) == {1}


def test_all_failures_at_once_change_nothing(tmp_path, undisturbed):
    with serving(failing=0.4, seed=2) as the_server:
        assert ask(caller(the_server, tmp_path / "calls.sqlite", timeout=0.5), texts(12) + lists(12)) == undisturbed


def test_what_stays_of_no_use_is_given_up_and_not_asked_again(tmp_path):
    with serving(failing=1.0, kinds=("blocked",)) as the_server:
        answers = ask(caller(the_server, tmp_path / "calls.sqlite", attempts=3), texts(2))
        assert [answer.status for answer in answers] == [Status.BLOCKED] * 2
        assert the_server.calls == 6
        assert ask(caller(the_server, tmp_path / "calls.sqlite", attempts=3), texts(2)) == answers
        assert the_server.calls == 6


def test_a_reply_that_was_cut_off_may_be_longer_the_next_time(tmp_path):
    with serving(failing=1.0, kinds=("truncated",)) as the_server:
        ask(caller(the_server, tmp_path / "calls.sqlite", attempts=4), texts(1))
        limits = [body["generationConfig"]["maxOutputTokens"] for body in the_server.bodies]
    assert limits == [400, 800, 1600, 1600]


def test_the_delay_that_the_server_names_is_kept(tmp_path):
    with serving(failing=0.5, kinds=("busy",), seed=3) as the_server:
        start = time.monotonic()
        ask(caller(the_server, tmp_path / "calls.sqlite", backoff=30.0), texts(20))
    assert time.monotonic() - start < 20  # a delay of our own would be minutes


def test_fewer_calls_at_once_while_the_server_is_busy(tmp_path):
    with serving(latency=0.3) as the_server:
        ask(caller(the_server, tmp_path / "calls.sqlite", in_flight=24), texts(60))
        assert 12 < the_server.most_at_once <= 24
    with serving(latency=0.3, failing=0.5, kinds=("overloaded",), seed=4) as the_server:
        ask(caller(the_server, tmp_path / "other.sqlite", in_flight=24, timeout=10.0), texts(10))
        assert the_server.most_at_once < 12


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"key": "wrong-key-0123456789"}, "refuses the key"),
        ({"model": "gone"}, "config.generation.model"),
        ({"budget": 0.0004}, "config.calls.budget"),
    ],
)
def test_what_the_user_can_mend_is_told_in_a_line_without_the_key(settings, told, tmp_path):
    with serving() as the_server:
        with pytest.raises(UserError, match=told) as error:
            ask(caller(the_server, tmp_path / "calls.sqlite", **settings), texts(3))
    assert settings.get("key", KEY) not in str(error.value)


def test_a_request_that_is_refused_for_good_costs_the_others_nothing(tmp_path):
    with serving(latency=0.1) as the_server:
        the_server.rejects = lambda body: "text 0 " in str(body)
        with pytest.raises(UserError, match="refuses a request"):  # nobody knows yet that it is this one alone
            ask(caller(the_server, tmp_path / "calls.sqlite", in_flight=8), texts(41))
        store = CallStore(tmp_path / "calls.sqlite", "test")
        assert (store.spent().lost, store.answered() >= 3) == (0, True)
        store.close()
        ask(caller(the_server, tmp_path / "calls.sqlite"), texts(20, start=1))
        answers = ask(caller(the_server, tmp_path / "calls.sqlite", attempts=1), texts(41))
        assert [answer.status for answer in answers] == [Status.ERROR] + [Status.OK] * 40
        assert set(the_server.good.values()) == {1}


def test_a_reply_whose_tokens_nobody_counted_costs_the_most_that_it_can(tmp_path):
    with serving() as the_server:
        the_server.uncounted = True
        with pytest.raises(UserError, match="config.calls.budget"):
            ask(caller(the_server, tmp_path / "calls.sqlite", budget=0.01), texts(100))
        assert the_server.calls < 20


def test_no_reply_is_longer_than_the_model_can_write(tmp_path):
    with serving(failing=1.0, kinds=("truncated",)) as the_server:
        the_caller = caller(the_server, tmp_path / "calls.sqlite", attempts=3)
        the_caller.generator._max_output_tokens = 500
        ask(the_caller, texts(1))
        assert [body["generationConfig"]["maxOutputTokens"] for body in the_server.bodies] == [400, 500, 500]


def test_the_first_reply_of_use_is_the_answer(tmp_path):
    with serving() as the_server:
        first = ask(caller(the_server, tmp_path / "calls.sqlite"), texts(1))
        store = CallStore(tmp_path / "calls.sqlite", "another")
        key = first[0].key
        blocked = Reply("", Finish.BLOCKED, Usage(1, 0, 1), "m")
        store.settle(store.reserve(key, "document", 0.0, 1.0), texts(1)[0], key, blocked, 0.0)
        store.close()
        assert ask(caller(the_server, tmp_path / "calls.sqlite"), texts(1)) == first
        assert the_server.calls == 1


def test_a_stop_does_not_wait_for_the_delay_that_the_server_names(tmp_path):
    class Busy:
        model = "busy"

        async def reply(self, request):
            raise Unavailable("later", after=20.0, busy=True)

        def max_output_tokens(self, request):
            return 1

    the_caller = Caller(Busy(), CallStore(tmp_path / "calls.sqlite", "test"))

    async def go():
        asyncio.get_running_loop().call_later(0.3, the_caller.stop)
        with pytest.raises(Interrupted):
            await the_caller.ask(texts(3))

    start = time.monotonic()
    asyncio.run(go())
    assert time.monotonic() - start < 5


def test_being_busy_is_never_the_fault_of_a_request(tmp_path):
    class Busy:
        """Busy nine times for one request, while the others are answered; and one error."""

        model, seen = "busy", 0

        async def reply(self, request):
            if "text 0 " in request.prompt:
                Busy.seen += 1
                if Busy.seen < 12:
                    await asyncio.sleep(0.02)
                    raise Unavailable("busy" if Busy.seen % 6 else "error", busy=bool(Busy.seen % 6))
            return Reply("<document>A text.</document>", Finish.STOP, Usage(1, 0, 1), "m")

        def max_output_tokens(self, request):
            return 1

    the_caller = Caller(Busy(), CallStore(tmp_path / "calls.sqlite", "test"), limits=Limits(backoff=0.001))
    answers = asyncio.run(the_caller.ask(texts(60)))
    assert {answer.status for answer in answers} == {Status.OK}


def test_a_service_that_never_answers_ends_the_run(tmp_path):
    with serving(failing=1.0, kinds=("error",)) as the_server:
        with pytest.raises(UserError, match="has not answered for 0 minutes"):
            ask(caller(the_server, tmp_path / "calls.sqlite", patience=0.2), texts(3))


def test_the_budget_is_kept_whatever_happens(tmp_path):
    with serving(failing=0.3, seed=5) as the_server:
        budget = 0.006
        for _ in range(4):  # each run may be stopped by it, none may go over it
            with contextlib.suppress(UserError):
                ask(caller(the_server, tmp_path / "calls.sqlite", budget=budget, timeout=0.3), texts(200))
        assert budget / 2 < the_server.dollars <= budget
        spent = CallStore(tmp_path / "calls.sqlite", "test").spent()
    assert the_server.dollars <= spent.paid + spent.reserved <= budget


def test_the_account_is_what_the_server_charged(tmp_path):
    with serving() as the_server:
        ask(caller(the_server, tmp_path / "calls.sqlite"), texts(10) + lists(10))
        store = CallStore(tmp_path / "calls.sqlite", "test")
        assert store.spent().paid == pytest.approx(the_server.dollars)
        assert store.spent().reserved == pytest.approx(0.0)
        stages = store.stages()
        assert {stage: about["calls"] for stage, about in stages.items()} == {"document": 10, "ideas": 10}
        assert sum(about["dollars"] for about in stages.values()) == pytest.approx(the_server.dollars)
        assert CallStore(tmp_path / "calls.sqlite", "another").spent().paid == 0


def test_a_stop_waits_for_the_calls_under_way(tmp_path):
    with serving(latency=0.1) as the_server:
        the_caller = caller(the_server, tmp_path / "calls.sqlite", in_flight=4)

        async def go():
            asyncio.get_running_loop().call_later(0.25, the_caller.stop)
            with pytest.raises(Interrupted, match="of 50 calls are answered and kept"):
                await the_caller.ask(texts(50))

        asyncio.run(go())
        spent = the_caller.store.spent()
        the_caller.store.close()
        assert spent.lost == 0
        assert 0 < the_server.calls < 50
        ask(caller(the_server, tmp_path / "calls.sqlite"), texts(50))
        assert set(the_server.paid.values()) == {1}


_CHILD = """
import asyncio, sys
from tests.corpus.gemini import caller, lists, texts
class Server: address = sys.argv[1]
asyncio.run(caller(Server, sys.argv[2], timeout=0.5, budget=float(sys.argv[3])).ask(texts(30) + lists(30)))
"""


@pytest.mark.slow  # tests/experiment/test_corpora.py kills the whole command
def test_killed_twenty_times_it_ends_as_if_nothing_had_happened(tmp_path):
    """SIGKILL at any moment. A call that is under way then has no reply that anyone could keep, and is asked again:
    those, and no others, are paid twice, and the budget counts them as spent."""
    path, budget, rng = tmp_path / "calls.sqlite", 0.5, random.Random(0)
    command = [sys.executable, "-c", _CHILD]
    with serving(failing=0.2, seed=6, latency=0.05) as the_server:
        kills = 0
        while kills < 20:
            child = subprocess.Popen(
                [*command, the_server.address, str(path), str(budget)], cwd=pathlib.Path(__file__).parents[2],
                stderr=subprocess.PIPE, env=os.environ | {"GEMINI_API_KEY": KEY},
            )  # fmt: skip
            # A start takes a second or two, most of it imports: wait for its first call.
            calls = the_server.calls
            while child.poll() is None and the_server.calls == calls:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.2))
            child.send_signal(signal.SIGKILL)
            _, complaint = child.communicate()
            assert child.returncode == -signal.SIGKILL or not complaint, complaint.decode()
            if child.returncode == 0:
                break
            kills += 1
        answers = ask(caller(the_server, path, timeout=0.5, budget=budget), texts(30) + lists(30))
        lost = {identity_of for identity_of, count in the_server.good.items() if count > 1}
        with sqlite3.connect(path) as db:
            [(pending,)] = db.execute("SELECT count(*) FROM pending WHERE lost")
        assert sum(the_server.good.values()) - len(the_server.good) <= pending
        assert len(lost) <= pending
        spent = CallStore(path, "test").spent()
        assert the_server.dollars <= spent.paid + spent.reserved <= budget
    with serving() as calm:
        assert answers == ask(caller(calm, tmp_path / "calm.sqlite"), texts(30) + lists(30))
    assert kills > 1


class Odd:
    """A generator that fails on the requests whose prompts hold `word`, as nobody foresaw."""

    model = "odd"

    def __init__(self, word, error):
        self.word, self.error, self.asked = word, error, []

    async def reply(self, request):
        self.asked.append(request.prompt)
        if self.word in request.prompt:
            raise self.error
        return Reply("<document>A text.</document>", Finish.STOP, Usage(1, 0, 1), "m")

    def max_output_tokens(self, request):
        return 100

    async def close(self):
        pass


@pytest.mark.parametrize(
    "error", [TypeError("an int"), RecursionError("deep"), ConnectionResetError(104, "gone"), KeyError("x")]
)
def test_an_exception_that_nobody_foresaw_costs_its_own_request_alone(error, tmp_path, capsys):
    generator = Odd("text 0 ", error)
    the_caller = Caller(generator, CallStore(tmp_path / "calls.sqlite", "test"), PRICE)
    answers = ask(the_caller, texts(20))
    assert [answer.status for answer in answers] == [Status.ERROR] + [Status.OK] * 19
    told = f"request {answers[0].key[:12]} of stage document: {type(error).__name__}: "
    assert told in capsys.readouterr().err
    # It may have been paid for; and the next run asks it again.
    store = CallStore(tmp_path / "calls.sqlite", "test")
    assert (store.spent().lost, store.spent().reserved > 0) == (1, True)
    generator.word = "nothing"
    assert all(answer.ok for answer in ask(Caller(generator, store, PRICE), texts(20)))
    assert len(generator.asked) == 21


def test_a_request_that_alone_is_left_and_fails_ends_one_run_and_not_the_next(tmp_path):
    def run():
        generator = Odd("text 0 ", Unavailable("500: an error"))
        limits = Limits(attempts=1, backoff=1e-4, patience=0.1)
        return ask(Caller(generator, CallStore(tmp_path / "calls.sqlite", "test"), limits=limits), asked)

    asked = texts(9, start=1)
    run()
    asked = texts(10)
    with pytest.raises(UserError, match="has not answered for"):  # as it would be if it were the service's fault
        run()
    assert [answer.status for answer in run()] == [Status.ERROR] + [Status.OK] * 9


def test_what_goes_wrong_with_all_ends_the_run(tmp_path):
    generator = Odd("Write", TypeError("an int"))
    the_caller = Caller(generator, CallStore(tmp_path / "calls.sqlite", "test"), limits=Limits(in_flight=4))
    with pytest.raises(UserError, match="^request [0-9a-f]{12} of stage document: TypeError: an int; .* 7 others"):
        ask(the_caller, texts(100))
    assert len(generator.asked) <= 12


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("daily", "the quota of the day is used up .*it resets at midnight, Pacific time"),
        ("no_credit", "no credit left"),
    ],
)
def test_what_no_waiting_helps_with_ends_the_run_at_once(kind, told, tmp_path):
    with serving(failing=1.0, kinds=(kind,)) as the_server:
        with pytest.raises(UserError, match=told):
            ask(caller(the_server, tmp_path / "calls.sqlite"), texts(1))
        assert the_server.calls == 1
    assert CallStore(tmp_path / "calls.sqlite", "test").spent().reserved == pytest.approx(0)


@pytest.mark.parametrize(("kind", "status"), [("error_in_200", None), ("nothing", Status.ERROR)])
def test_status_200_does_not_make_a_reply(kind, status, tmp_path):
    """An error in the body is one of the service; of a body without anything, the next run asks again."""
    with serving(failing=1.0, kinds=(kind,)) as the_server:
        with contextlib.nullcontext() if status else pytest.raises(UserError, match="503: .* the model is overloaded"):
            answers = ask(caller(the_server, tmp_path / "calls.sqlite", attempts=1, patience=0.1), texts(2))
            assert {answer.status for answer in answers} == {status}
        the_server.failing = 0.0
        answers = ask(caller(the_server, tmp_path / "calls.sqlite", attempts=1), texts(2))
        assert all(answer.ok for answer in answers)


def test_errors_of_another_form_are_got_over(tmp_path):
    with serving(failing=0.5, kinds=("bare_error", "list_error"), seed=1) as the_server:
        answers = ask(caller(the_server, tmp_path / "calls.sqlite"), texts(6))
        assert the_server.calls > 6
    assert all(answer.ok for answer in answers)


def test_a_key_with_an_invisible_character_is_told_before_any_call(tmp_path):
    with serving() as the_server, pytest.raises(UserError, match=r"GEMINI_API_KEY or GOOGLE_API_KEY holds U\+200B"):
        caller(the_server, tmp_path / "calls.sqlite", key="AIza\u200bfake")


def test_what_is_no_store_is_told(tmp_path):
    (tmp_path / "calls.sqlite").write_text("not a database, but a text that is long enough to look at" * 20)
    with pytest.raises(UserError, match="is no store of calls"):
        CallStore(tmp_path / "calls.sqlite", "test")


def test_no_key_is_kept(tmp_path):
    with serving(failing=0.3, seed=7) as the_server:
        ask(caller(the_server, tmp_path / "calls.sqlite", timeout=0.3), texts(20))
    for path in tmp_path.iterdir():
        assert KEY.encode() not in path.read_bytes()


def test_identity_is_of_what_is_asked(tmp_path):
    with serving() as the_server:
        ask(caller(the_server, tmp_path / "calls.sqlite"), texts(3))
        assert len({identity(body) for body in the_server.bodies}) == 3


def test_what_the_service_refused_is_asked_again_by_the_next_run(tmp_path):
    """The fault may have been in a setting. What it replied, and is of no use, stays as it is."""
    store = CallStore(tmp_path / "calls.sqlite", "test")
    request = texts(1)[0]
    key = request.key(MODEL)
    for _ in range(4):
        pending = store.reserve(key, "document", 0.0, 1.0)
        store.settle(pending, request, key, Reply("", Finish.ERROR, Usage(), MODEL, "400: too long"), 0.0)
    store.close()
    with serving() as the_server:
        [answer] = ask(caller(the_server, tmp_path / "calls.sqlite", attempts=4), [request])
        assert answer.ok
        assert the_server.calls == 1
