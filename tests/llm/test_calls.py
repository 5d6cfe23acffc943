"""The caller and the store: against a small Gemini, through the client that users have, and against a model in this
process, whose faults, delays and busy hours take no time."""

import asyncio
import contextlib
import random

import pytest

from msm_jax.errors import Interrupted, UserError
from msm_jax.llm.request import Finish, Rejected, Reply, Status, Unavailable, Usage, classify
from msm_jax.llm.store import CallStore
from tests.corpus.gemini import MODEL, brain, caller, lists, texts
from tests.gemini_server import KEY, PER_CALL, PER_REPLY
from tests.llm.conftest import Model

REQUESTS = texts(8) + lists(8)


def good(requests):
    """The answers to `requests` where nothing disturbs."""

    def answer(request):
        config = {"responseSchema": {}} if request.shape else {}
        text = brain({"contents": {"parts": [{"text": request.prompt}]}, "generationConfig": config})
        return classify(request, Reply(text, Finish.STOP, Usage()), request.key(MODEL))

    return list(map(answer, requests))


def only(word, error):
    """A fault of the requests whose prompts hold `word`."""
    return lambda request: error if word in request.prompt else None


def test_equal_requests_are_asked_once_and_a_rerun_asks_nothing(gemini, ask):
    assert ask(texts(3) * 3) == good(texts(3)) * 3
    assert ask(texts(4)) == good(texts(4))
    assert gemini.calls == 4


OF_CALLS = tuple(kind for kind in PER_CALL if kind != "hang") + ("error_in_200", "bare_error", "list_error")


@pytest.mark.parametrize("kinds", [OF_CALLS, (*PER_REPLY, "nothing")])
def test_every_failure_is_got_over(kinds, gemini, ask):
    gemini.failing, gemini.kinds = 0.4, kinds
    assert ask(REQUESTS) == good(REQUESTS)
    assert gemini.drawn.keys() == {"good", *kinds}
    assert set(gemini.good.values()) == {1}


@pytest.mark.parametrize(
    ("kind", "after", "busy", "perhaps_paid"),
    [
        ("busy", 0.01, True, False),
        ("busy_plain", None, True, False),
        ("overloaded", None, True, False),
        ("error_in_200", None, True, False),
        ("error", None, False, False),
        ("bare_error", None, False, False),
        ("list_error", None, False, True),
        ("reset", None, False, True),
        ("half", None, False, True),
        ("stopped", None, False, False),
    ],
)
def test_what_a_failure_is_to_the_caller(kind, after, busy, perhaps_paid, gemini, path):
    gemini.failing, gemini.kinds = 1.0, (kind,)
    if kind == "stopped":
        gemini.stop()
    generator = caller(gemini, path).generator
    with pytest.raises(Unavailable) as error:
        asyncio.run(generator.reply(texts(1)[0]))
    found = error.value
    assert (found.after, found.busy, found.perhaps_paid) == (after, busy, perhaps_paid)


@pytest.mark.parametrize(
    ("kind", "most", "status", "limits"),
    [
        ("blocked", 65_536, Status.BLOCKED, [400, 400, 400]),
        ("truncated", 65_536, Status.TRUNCATED, [400, 800, 1600, 1600]),
        ("truncated", 500, Status.TRUNCATED, [400, 500, 500]),  # no reply is longer than the model can write
    ],
)
def test_what_stays_of_no_use_is_given_up_and_not_asked_again(kind, most, status, limits, gemini, ask):
    """After a reply that was cut off, the next one may be longer."""
    gemini.failing, gemini.kinds = 1.0, (kind,)

    def change(the_caller):
        the_caller.generator._max_output_tokens = most

    for _ in range(2):
        [answer] = ask(texts(1), change=change, attempts=len(limits))
        assert answer.status is status
    assert [body["generationConfig"]["maxOutputTokens"] for body in gemini.bodies] == limits


@pytest.mark.parametrize(
    ("settings", "kind", "told", "calls"),
    [
        ({"key": "wrong-key-0123456789"}, "", "refuses the key", 0),
        ({"key": "AIza\u200bfake"}, "", r"GEMINI_API_KEY or GOOGLE_API_KEY holds U\+200B", 0),
        ({"model": "gone"}, "", "config.generation.model", 0),
        ({"budget": 0.0004}, "", "config.calls.budget", 0),
        # No waiting helps with these.
        ({}, "daily", "the quota of the day is used up .*it resets at midnight, Pacific time", 1),
        ({}, "no_credit", "no credit left", 1),
    ],
)
def test_what_the_user_can_mend_is_told_in_a_line_without_the_key(settings, kind, told, calls, gemini, ask, account):
    gemini.failing, gemini.kinds = float(bool(kind)), (kind,)
    with pytest.raises(UserError, match=told) as error:
        ask(texts(1), **settings)
    assert settings.get("key", KEY) not in str(error.value)
    assert gemini.calls == calls and account().reserved == pytest.approx(0)


def test_the_account_is_what_the_server_charged(gemini, ask, account, path):
    ask(REQUESTS)
    assert account().paid == pytest.approx(gemini.dollars)
    assert account().reserved == pytest.approx(0)
    assert account("another").paid == 0
    with contextlib.closing(CallStore(path, "test")) as store:
        stages, of_keys = store.stages(), store.stages([request.key(MODEL) for request in texts(3)])
        assert store.models([REQUESTS[0].key(MODEL)]) == ["fake-001"]
    assert {stage: about["calls"] for stage, about in stages.items()} == {"document": 8, "ideas": 8}
    assert sum(about["dollars"] for about in stages.values()) == pytest.approx(gemini.dollars)
    assert {stage: about["calls"] for stage, about in of_keys.items()} == {"document": 3}


def test_the_budget_is_kept_whatever_happens(gemini, ask, account):
    gemini.failing, gemini.kinds, budget = 0.3, OF_CALLS + PER_REPLY, 0.006
    for _ in range(3):  # each run may be stopped by it, none may go over it
        with contextlib.suppress(UserError):
            ask(texts(100), budget=budget)
    spent = account().paid + account().reserved
    assert budget / 2 < gemini.dollars < spent + 1e-9 < budget + 2e-9


def test_a_reply_whose_tokens_nobody_counted_costs_the_most_that_it_can(gemini, ask):
    gemini.uncounted = True
    with pytest.raises(UserError, match="config.calls.budget"):
        ask(texts(40), budget=0.01)
    assert gemini.calls < 20


def test_a_call_that_hangs_is_lost_and_asked_again(ask_model, account):
    model = Model(seconds=1e6)
    with pytest.raises(UserError, match=r"has not answered for 30 minutes \(no answer in 600 s\)"):
        ask_model(model, texts(1))
    assert account().lost == len(model.asked) > 2 and account().reserved > 0
    assert ask_model(Model(), texts(1))[0].ok


def test_the_delay_that_the_service_names_is_kept(ask_model, clock):
    began, errors = clock.now, [Unavailable("later", after=40.0, busy=True)]
    assert ask_model(Model(lambda _: errors.pop() if errors else None), texts(1), backoff=1e5)[0].ok
    assert 40 < clock.now - began < 42


def test_a_delay_that_no_one_waits_for_is_told(ask_model):
    later = Unavailable("later", after=7200.0, busy=True)
    with pytest.raises(UserError, match="asks to wait for 120 minutes"):
        ask_model(Model(lambda _: later), texts(1))


def test_fewer_calls_at_once_while_the_service_is_busy(ask_model):
    calm, rng = Model(), random.Random(4)
    ask_model(calm, texts(60), in_flight=24)
    assert 12 < calm.most <= 24
    busy = Model(lambda _: Unavailable("overloaded", busy=True) if rng.random() < 0.5 else None)
    ask_model(busy, texts(80, start=60), in_flight=24, backoff=0.01)
    assert busy.most < 12


def test_a_stop_waits_for_the_calls_under_way(ask_model, account):
    model = Model()
    with pytest.raises(Interrupted, match="of 50 calls are answered and kept"):
        ask_model(model, texts(50), stop_after=0.7, in_flight=4)
    assert 0 < len(model.asked) < 50 and account().lost == 0
    ask_model(model, texts(50))
    assert len(model.asked) == 50


def test_a_stop_does_not_wait_for_the_delay_that_the_service_names(ask_model, clock):
    began, later = clock.now, Unavailable("later", after=900.0, busy=True)
    with pytest.raises(Interrupted):
        ask_model(Model(lambda _: later), texts(3), stop_after=5.0)
    assert clock.now - began < 7


def test_being_busy_is_never_the_fault_of_a_request(ask_model):
    """Busy ten times for one request, while the others are answered; and one error."""
    seen = []

    def fault(request):
        if "text 0 " in request.prompt and len(seen) < 11:
            seen.append(request)
            return Unavailable("busy", busy=True) if len(seen) % 6 else Unavailable("error")

    assert {answer.status for answer in ask_model(Model(fault), texts(40), backoff=2.0)} == {Status.OK}
    assert len(seen) == 11


def test_a_request_that_is_refused_for_good_costs_the_others_nothing(ask_model, account, path):
    model = Model(only("text 0 ", Rejected("it refuses a request: 400")))
    with pytest.raises(UserError, match="refuses a request"):  # nobody knows yet that it is this one alone
        ask_model(model, texts(41), in_flight=8)
    assert account().lost == 0 and 3 <= len(model.asked) < 8
    ask_model(model, texts(20, start=1))
    answers = ask_model(model, texts(41), attempts=1)
    assert [answer.status for answer in answers] == [Status.ERROR] + [Status.OK] * 40
    assert len(model.asked) == 42  # the one twice


@pytest.mark.parametrize("error", [TypeError("an int"), RecursionError("deep"), ConnectionResetError(104, "gone")])
def test_an_exception_that_nobody_foresaw_costs_its_own_request_alone(error, ask_model, account, capsys):
    model = Model(only("text 0 ", error))
    answers = ask_model(model, texts(20))
    assert [answer.status for answer in answers] == [Status.ERROR] + [Status.OK] * 19
    assert f"request {answers[0].key[:12]} of stage document: {type(error).__name__}: " in capsys.readouterr().err
    # It may have been paid for; and the next run asks it again.
    assert account().lost == 1 and account().reserved > 0
    assert all(answer.ok for answer in ask_model(Model(), texts(20)))


def test_a_request_that_alone_is_left_and_fails_ends_one_run_and_not_the_next(ask_model):
    model = Model(only("text 0 ", Unavailable("500: an error")))
    ask_model(model, texts(9, start=1))
    with pytest.raises(UserError, match="has not answered for 30 minutes"):  # as it would be if the service were down
        ask_model(model, texts(10), attempts=1)
    answers = ask_model(model, texts(10), attempts=1)
    assert [answer.status for answer in answers] == [Status.ERROR] + [Status.OK] * 9


def test_what_goes_wrong_with_all_ends_the_run(ask_model):
    model = Model(only("Write", TypeError("an int")))
    with pytest.raises(UserError, match="^request [0-9a-f]{12} of stage document: TypeError: an int; .* 7 others"):
        ask_model(model, texts(100), in_flight=4)
    assert len(model.asked) <= 12


def test_what_is_no_store_is_told(path):
    path.write_text("not a database, but a text that is long enough to look at" * 20)
    with pytest.raises(UserError, match="is no store of calls"):
        CallStore(path, "test")


@pytest.mark.parametrize(
    ("replies", "calls"),
    [
        # The first reply of use is the answer, whatever came after it.
        ([("<document>A text.</document>", Finish.STOP), ("", Finish.BLOCKED)], 0),
        # What the service refused is asked again: the fault may have been in a setting.
        ([("", Finish.ERROR)] * 4, 1),
    ],
)
def test_what_is_in_the_store_already(replies, calls, ask_model, path):
    [request] = texts(1)
    model, key = Model(), request.key(Model.model)
    with contextlib.closing(CallStore(path, "another")) as store:
        for text, finish in replies:
            reply = Reply(text, finish, Usage(1, 0, 1), "m")
            store.settle(store.reserve(key, "document", 0.0, 1.0), request, key, reply, 0.0)
    assert [answer.value for answer in ask_model(model, [request])] == ["A text."]
    assert len(model.asked) == calls
