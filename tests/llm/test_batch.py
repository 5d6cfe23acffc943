"""Batch jobs of a small Gemini: answered whole or in part, expired, lost between two processes."""

import pytest

from msm_jax.errors import Interrupted, UserError
from msm_jax.llm import batch
from msm_jax.llm.request import Unavailable
from tests.corpus.gemini import lists, texts
from tests.gemini_server import PER_REPLY
from tests.llm.test_calls import good

REQUESTS = texts(16) + lists(8)  # three jobs: of 10, 10 and 4


@pytest.fixture(autouse=True)
def small_jobs(monkeypatch):
    monkeypatch.setattr(batch, "_MOST", 10)
    monkeypatch.setattr(batch, "_LEAST", 5)


@pytest.fixture
def ask(ask):
    """By batch jobs; whatever becomes of them, the answers are those that single calls have."""

    def ask_by_jobs(requests=REQUESTS, change=lambda the_caller: None, payer="test", limits=(), **jobs):
        answers = ask(requests, jobs, change, payer=payer, **dict(limits))
        assert answers == good(requests)

    return ask_by_jobs


def replaced(**methods):
    """A change of the caller: methods of its generator, each of which gets the one that it replaces."""

    def change(the_caller):
        for name, method in methods.items():
            original = getattr(the_caller.generator, name)

            def replacement(*arguments, method=method, original=original):
                return method(the_caller, original, *arguments)

            setattr(the_caller.generator, name, replacement)

    return change


async def stop(the_caller, collect, job_id):
    the_caller.stop()


def sent_and_left(ask):
    """Jobs that a process sent, which ended before they were over."""
    with pytest.raises(Interrupted, match="3 batch jobs go on without this process"):
        ask(change=replaced(collect=stop))


def test_jobs_answer_everything_and_a_rerun_asks_nothing(gemini, ask, account):
    gemini.polls_until_done = 3
    for _ in range(2):
        ask()
        assert gemini.calls == 3  # jobs
    assert set(gemini.paid.values()) == {1} and gemini.cancelled == []
    assert account().paid == pytest.approx(gemini.dollars)
    assert account().reserved == pytest.approx(0)


@pytest.mark.parametrize(
    ("how", "singly", "lost"), [("partial", 4, 0), ("failed", 10, 0), ("expired", 10, 1), ("cancelled", 10, 1)]
)
def test_what_a_job_leaves_is_asked_singly_and_nothing_else(how, singly, lost, gemini, ask, account):
    """What one may have cost that never said so stays entered."""
    gemini.jobs = [how, "succeeded"]
    ask()
    assert len(gemini.bodies) == singly and set(gemini.paid.values()) == {1}
    assert (account().lost, account().reserved > 0.001) == (lost, bool(lost))


def test_replies_of_no_use_are_asked_again(gemini, ask):
    gemini.failing, gemini.kinds = 0.3, PER_REPLY
    ask()
    assert gemini.drawn.total() > 24 and set(gemini.good.values()) == {1}


def test_a_few_requests_make_no_job(gemini, ask):
    ask(texts(4))
    assert len(gemini.bodies) == 4


@pytest.mark.parametrize(("payer", "sends"), [("test", True), ("test", False), ("another", False)])
def test_jobs_of_before_are_collected_by_whoever_needs_them(payer, sends, gemini, ask, account):
    sent_and_left(ask)
    ask(payer=payer, sends=sends)
    assert gemini.calls == 3 and set(gemini.paid.values()) == {1}
    assert account().paid == pytest.approx(gemini.dollars)


def test_a_job_whose_id_was_never_heard_is_found_by_its_name(gemini, ask):
    async def submit(_, submit, *job):
        await submit(*job)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(change=replaced(submit=submit))
    assert gemini.calls == 1
    ask()
    assert gemini.calls == 3 and set(gemini.paid.values()) == {1}


def entered(the_caller, name, requests, dollars):
    keys = {request.key(the_caller.generator.model): request for request in requests}
    assert the_caller.store.open_job(name, keys, dollars, 1.0)


def test_a_job_that_is_sent_late_has_all_its_time(gemini, ask):
    def change(the_caller):
        entered(the_caller, "msm-late", texts(10), 0.1)
        the_caller.store._db.execute("UPDATE jobs SET created = created - 1e6")

    ask(change=change)
    assert gemini.cancelled == gemini.bodies == []


def test_a_job_that_was_entered_and_never_sent_gives_back_what_it_held(gemini, ask, account):
    ask(texts(20), change=lambda the_caller: entered(the_caller, "msm-dead", texts(24), 0.9), limits={"budget": 1.0})
    assert gemini.calls == 2  # jobs of what is asked now
    assert account().reserved == pytest.approx(0)


async def unreadable(*_):
    raise Unavailable("unreadable answer", perhaps_paid=True)


@pytest.mark.parametrize("why", ["forgotten", "unreadable", "too long"])
def test_a_job_that_is_given_up_is_asked_singly(why, gemini, ask, account):
    """Nobody knows whether it is charged, so it counts as spent."""
    gemini.forgets_jobs, gemini.polls_until_done = why == "forgotten", 10**9
    change = replaced(collect=unreadable) if why == "unreadable" else replaced()
    ask(change=change, deadline=26 * 3600.0 if why == "forgotten" else 0.0)
    assert len(gemini.bodies) == 24
    assert sorted(gemini.cancelled) == ([] if why == "forgotten" else ["batches/0", "batches/1", "batches/2"])
    assert account().lost == 3 and account().reserved > 0.01


def test_jobs_follow_each_other_where_the_budget_has_no_room_for_all(gemini, ask):
    def change(the_caller):
        assert the_caller.limits.budget < sum(map(the_caller.most, REQUESTS))

    ask(change=change, limits={"budget": 0.025})
    assert gemini.calls == 3 and gemini.dollars < 0.025


def test_jobs_keep_the_budget(gemini, ask, account):
    with pytest.raises(UserError, match="config.calls.budget"):
        ask(limits={"budget": 0.005})
    assert gemini.calls == 0 and account().reserved <= 0.005


@pytest.mark.parametrize("sends", [True, False])
def test_replies_that_do_not_say_what_they_are_to_are_entered_as_spent(sends, gemini, ask, account, capsys):
    """Which is which is not guessed: a text under another request would be seen by nobody."""
    gemini.nameless = True
    sent_and_left(ask)
    if sends:
        with pytest.raises(UserError, match="10 of 10 replies do not say .*; set config.calls.service=flex"):
            ask()
        assert account().paid + account().reserved > gemini.dollars - 1e-9
    else:
        ask(sends=False)
        assert "10 of 10 replies do not say" in capsys.readouterr().err
        assert set(gemini.paid.values()) == {2}
        assert account().paid == pytest.approx(gemini.dollars)


def test_replies_that_have_one_key_together_are_to_nobody(gemini, ask, account, capsys):
    async def first_two_alike(_, collect, job_id):
        if done := await collect(job_id):
            done[1][1] = (done[1][0][0], done[1][1][1])
            return "EXPIRED", done[1]  # what was answered until then was paid for

    ask(change=replaced(collect=first_two_alike))
    assert "2 of 10 replies do not say which request they are to" in capsys.readouterr().err
    assert account().paid == pytest.approx(gemini.dollars)


def test_what_a_job_did_not_count_costs_the_most_that_it_can(gemini, ask, account):
    gemini.uncounted, most = True, []
    ask(change=lambda the_caller: most.extend(map(the_caller.most, REQUESTS)))
    assert account().paid == pytest.approx(sum(most)) and sum(most) > gemini.dollars


def one_at_a_time(running):
    """A service that takes one job at a time, and has those that are `running`."""

    async def submit(_, submit, name, requests):
        if running:
            raise Unavailable("no room", busy=True)
        running.add(name)
        return await submit(name, requests)

    async def collect(_, collect, job_id):
        if done := await collect(job_id):
            running.clear()
        return done

    return replaced(submit=submit, collect=collect)


def test_jobs_wait_for_room(gemini, ask):
    gemini.polls_until_done = 3
    ask(change=one_at_a_time(set()))
    assert gemini.calls == 3


def test_a_service_that_takes_no_jobs_ends_the_run(ask):
    with pytest.raises(UserError, match="no batch job is taken or answered"):
        ask(change=one_at_a_time({"another"}), limits={"patience": 0.0})
