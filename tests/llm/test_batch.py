"""Batch jobs of a small Gemini: answered whole or in part, expired, lost between two processes."""

import asyncio
import contextlib

import pytest

from msm_jax.errors import Interrupted, UserError
from msm_jax.llm import batch
from msm_jax.llm.batch import BatchCaller
from msm_jax.llm.request import Unavailable
from msm_jax.llm.store import CallStore
from tests.corpus.gemini import caller, lists, server, texts


@contextlib.contextmanager
def serving(**settings):
    the_server = server(**settings)
    try:
        yield the_server
    finally:
        the_server.stop()


def ask(the_caller, requests, **settings):
    async def go():
        try:
            return await BatchCaller(the_caller, poll=0.02, **settings).ask(requests)
        finally:
            await the_caller.generator.close()
            the_caller.store.close()

    return asyncio.run(go())


@pytest.fixture(autouse=True)
def small_jobs(monkeypatch):
    monkeypatch.setattr(batch, "_MOST", 25)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with serving() as the_server:
        the_caller = caller(the_server, tmp_path_factory.mktemp("calls") / "calls.sqlite")
        answers = asyncio.run(the_caller.ask(texts(40) + lists(20)))
        the_caller.store.close()
        return answers


def test_jobs_answer_everything_and_a_rerun_asks_nothing(tmp_path, undisturbed):
    with serving() as the_server:
        assert ask(caller(the_server, tmp_path / "calls.sqlite"), texts(40) + lists(20)) == undisturbed
        assert the_server.calls == 3  # jobs
        assert ask(caller(the_server, tmp_path / "calls.sqlite"), texts(40) + lists(20)) == undisturbed
        assert the_server.calls == 3
        assert set(the_server.paid.values()) == {1}
        store = CallStore(tmp_path / "calls.sqlite", "test")
        assert store.spent().paid == pytest.approx(the_server.dollars)
        assert store.spent().reserved == pytest.approx(0)


@pytest.mark.parametrize("how", ["partial", "expired", "failed"])
def test_what_a_job_leaves_is_asked_singly_and_nothing_else(how, tmp_path, undisturbed):
    with serving() as the_server:
        the_server.jobs = [how, "succeeded"]
        assert ask(caller(the_server, tmp_path / "calls.sqlite"), texts(40) + lists(20)) == undisturbed
        assert len(the_server.bodies) == (25 if how != "partial" else 9)
        assert set(the_server.paid.values()) == {1}


def test_replies_of_no_use_are_asked_again(tmp_path, undisturbed):
    with serving(failing=0.3, seed=1) as the_server:
        the_caller = caller(the_server, tmp_path / "calls.sqlite", timeout=1.5)
        assert ask(the_caller, texts(40) + lists(20)) == undisturbed
        assert set(the_server.good.values()) == {1}


def test_a_few_requests_make_no_job(tmp_path):
    with serving() as the_server:
        ask(caller(the_server, tmp_path / "calls.sqlite"), texts(5))
        assert len(the_server.bodies) == 5


def test_a_process_that_stops_leaves_its_jobs_to_the_next(tmp_path, undisturbed):
    with serving() as the_server:
        the_server.polls_until_done = 10**9
        the_caller = caller(the_server, tmp_path / "calls.sqlite")

        async def go():
            asyncio.get_running_loop().call_later(0.5, the_caller.stop)
            with pytest.raises(Interrupted, match="3 batch jobs go on without this process"):
                await BatchCaller(the_caller, poll=0.02).ask(texts(40) + lists(20))

        asyncio.run(go())
        the_caller.store.close()
        the_server.polls_until_done = 0
        assert ask(caller(the_server, tmp_path / "calls.sqlite"), texts(40) + lists(20)) == undisturbed
        assert the_server.calls == 3
        assert set(the_server.paid.values()) == {1}


class Deaf:
    """Sends jobs, and does not live to hear of them."""

    def __init__(self, generator):
        self._generator = generator

    def __getattr__(self, name):
        return getattr(self._generator, name)

    async def submit(self, name, requests):
        await self._generator.submit(name, requests)
        raise KeyboardInterrupt


def test_a_job_whose_id_was_never_heard_is_found_by_its_name(tmp_path, undisturbed):
    with serving() as the_server:
        the_caller = caller(the_server, tmp_path / "calls.sqlite")
        the_caller.generator = Deaf(the_caller.generator)
        with pytest.raises(KeyboardInterrupt):
            ask(the_caller, texts(40) + lists(20))
        assert the_server.calls == 1
        assert ask(caller(the_server, tmp_path / "calls.sqlite"), texts(40) + lists(20)) == undisturbed
        assert the_server.calls == 3
        assert set(the_server.paid.values()) == {1}


def test_a_job_that_is_sent_late_has_all_its_time(tmp_path, undisturbed):
    with serving() as the_server:
        the_caller = caller(the_server, tmp_path / "calls.sqlite")
        requests = {request.key(the_caller.generator.model): request for request in texts(25)}
        assert the_caller.store.open_job("msm-late", requests, 0.1, 1.0)
        the_caller.store._db.execute("UPDATE jobs SET created = created - 1e6")
        assert ask(the_caller, texts(40) + lists(20)) == undisturbed
        assert the_server.cancelled == []
        assert the_server.bodies == []


def test_a_job_that_was_entered_and_never_sent_gives_back_what_it_held(tmp_path):
    with serving() as the_server:
        the_caller = caller(the_server, tmp_path / "calls.sqlite")
        requests = {request.key(the_caller.generator.model): request for request in texts(40)}
        assert the_caller.store.open_job("msm-dead", requests, 0.9, 1.0)
        ask(the_caller, texts(30))  # fewer than it had
        assert the_server.calls == 2  # jobs of what is asked now
        assert CallStore(tmp_path / "calls.sqlite", "test").spent().reserved == pytest.approx(0)


def test_a_job_that_the_service_has_forgotten_is_asked_singly(tmp_path, undisturbed):
    with serving() as the_server:
        the_server.forgets_jobs = True
        assert ask(caller(the_server, tmp_path / "calls.sqlite"), texts(40) + lists(20)) == undisturbed
        assert len(the_server.bodies) == 60
        assert CallStore(tmp_path / "calls.sqlite", "test").spent().lost == 3


@pytest.mark.parametrize("payer", ["test", "another"])
def test_jobs_of_before_are_collected_by_whoever_needs_them(payer, tmp_path, undisturbed):
    with serving() as the_server:
        the_server.polls_until_done = 10**9
        the_caller = caller(the_server, tmp_path / "calls.sqlite")

        async def go():
            asyncio.get_running_loop().call_later(0.5, the_caller.stop)
            with contextlib.suppress(Interrupted):
                await BatchCaller(the_caller, poll=0.02).ask(texts(40) + lists(20))

        asyncio.run(go())
        the_caller.store.close()
        the_server.polls_until_done = 0
        other = caller(the_server, tmp_path / "calls.sqlite", payer=payer)
        assert ask(other, texts(40) + lists(20), sends=False) == undisturbed
        assert the_server.calls == 3
        assert CallStore(tmp_path / "calls.sqlite", "test").spent().paid == pytest.approx(the_server.dollars)


def test_jobs_follow_each_other_where_the_budget_has_no_room_for_all(tmp_path, undisturbed):
    with serving() as the_server:
        the_caller = caller(the_server, tmp_path / "calls.sqlite", budget=0.06)
        assert 0.06 < sum(the_caller.most(request) for request in texts(40) + lists(20)) < 0.16
        assert ask(the_caller, texts(40) + lists(20)) == undisturbed
        assert the_server.calls == 3
        assert the_server.dollars < 0.06


def test_a_job_that_takes_too_long_is_given_up(tmp_path, undisturbed):
    with serving() as the_server:
        the_server.polls_until_done = 10**9
        the_caller = caller(the_server, tmp_path / "calls.sqlite")
        assert ask(the_caller, texts(40) + lists(20), deadline=0.3) == undisturbed
        assert len(the_server.bodies) == 60
        assert sorted(the_server.cancelled) == ["batches/0", "batches/1", "batches/2"]
        # Nobody knows whether it is charged, so it counts as spent.
        spent = CallStore(tmp_path / "calls.sqlite", "test").spent()
        assert (spent.lost, spent.reserved > 0.01) == (3, True)


def sent_and_left(the_server, the_caller):
    """Jobs that a process sent, which ended before they were over."""
    the_server.polls_until_done = 10**9

    async def go():
        asyncio.get_running_loop().call_later(0.3, the_caller.stop)
        with contextlib.suppress(Interrupted):
            await BatchCaller(the_caller, poll=0.02).ask(texts(40) + lists(20))

    asyncio.run(go())
    the_caller.store.close()
    the_server.polls_until_done = 0


@pytest.mark.parametrize("sends", [True, False])
def test_replies_that_do_not_say_what_they_are_to_are_entered_as_spent(sends, tmp_path, undisturbed, capsys):
    """Which is which is not guessed: a text under another request would be seen by nobody."""
    with serving() as the_server:
        the_server.nameless = True
        sent_and_left(the_server, caller(the_server, tmp_path / "calls.sqlite"))
        if sends:
            with pytest.raises(UserError, match="25 of 25 replies do not say .*; set config.calls.service=flex"):
                ask(caller(the_server, tmp_path / "calls.sqlite"), texts(40) + lists(20))
        else:
            answers = ask(caller(the_server, tmp_path / "calls.sqlite"), texts(40) + lists(20), sends=False)
            assert answers == undisturbed
            assert "25 of 25 replies do not say" in capsys.readouterr().err
            assert set(the_server.paid.values()) == {2}
        spent = CallStore(tmp_path / "calls.sqlite", "test").spent()
        assert spent.paid + spent.reserved >= the_server.dollars * 0.999
        assert sends or spent.paid == pytest.approx(the_server.dollars)


@pytest.mark.parametrize(("how", "lost"), [("expired", 1), ("cancelled", 1), ("failed", 0), ("partial", 0)])
def test_what_a_job_may_have_cost_that_never_said_so_stays_entered(how, lost, tmp_path):
    with serving() as the_server:
        the_server.jobs = [how]
        ask(caller(the_server, tmp_path / "calls.sqlite"), texts(25))
        assert CallStore(tmp_path / "calls.sqlite", "test").spent().lost == lost


def test_replies_that_have_one_key_together_are_to_nobody(tmp_path, undisturbed, capsys):
    with serving() as the_server:
        the_caller = caller(the_server, tmp_path / "calls.sqlite")
        collect = the_caller.generator.collect

        async def first_two_alike(job_id):
            if done := await collect(job_id):
                done[1][1] = (done[1][0][0], done[1][1][1])
            return done

        the_caller.generator.collect = first_two_alike
        assert ask(the_caller, texts(40) + lists(20)) == undisturbed
        assert "2 of 25 replies do not say which request they are to" in capsys.readouterr().err
        assert CallStore(tmp_path / "calls.sqlite", "test").spent().paid == pytest.approx(the_server.dollars)


def test_a_job_whose_results_cannot_be_read_is_given_up_at_its_deadline(tmp_path, undisturbed):
    async def collect(job_id):
        raise Unavailable("unreadable answer", perhaps_paid=True)

    with serving() as the_server:
        the_caller = caller(the_server, tmp_path / "calls.sqlite")
        the_caller.generator.collect = collect
        assert ask(the_caller, texts(40) + lists(20), deadline=0.2) == undisturbed
        assert CallStore(tmp_path / "calls.sqlite", "test").spent().lost == 3


def test_what_a_job_did_not_count_costs_the_most_that_it_can(tmp_path, undisturbed):
    with serving() as the_server:
        the_server.uncounted = True
        the_caller = caller(the_server, tmp_path / "calls.sqlite")
        assert ask(the_caller, texts(40) + lists(20)) == undisturbed
        spent = CallStore(tmp_path / "calls.sqlite", "test").spent()
        assert spent.paid == pytest.approx(sum(map(the_caller.most, texts(40) + lists(20))))
        assert spent.paid > the_server.dollars


class Full:
    """A service that takes one job at a time."""

    def __init__(self, generator):
        self._generator, self.running = generator, set()

    def __getattr__(self, name):
        return getattr(self._generator, name)

    async def submit(self, name, requests):
        if self.running:
            raise Unavailable("no room", busy=True)
        self.running.add(name)
        return await self._generator.submit(name, requests)

    async def collect(self, job_id):
        done = await self._generator.collect(job_id)
        if done:
            self.running.clear()
        return done


def test_jobs_wait_for_room(tmp_path, undisturbed):
    with serving() as the_server:
        the_server.polls_until_done = 3
        the_caller = caller(the_server, tmp_path / "calls.sqlite", patience=0.5)
        the_caller.generator = Full(the_caller.generator)
        assert ask(the_caller, texts(40) + lists(20)) == undisturbed
        assert the_server.calls == 3


def test_a_service_that_takes_no_jobs_ends_the_run(tmp_path):
    with serving() as the_server:
        the_caller = caller(the_server, tmp_path / "calls.sqlite", patience=0.2)
        the_caller.generator = Full(the_caller.generator)
        the_caller.generator.running.add("another")
        with pytest.raises(UserError, match="no batch job is taken or answered"):
            ask(the_caller, texts(40))


def test_jobs_keep_the_budget(tmp_path):
    with serving() as the_server:
        with pytest.raises(UserError, match="config.calls.budget"):
            ask(caller(the_server, tmp_path / "calls.sqlite", budget=0.01), texts(100))
        assert the_server.calls == 0
        assert CallStore(tmp_path / "calls.sqlite", "test").spent().reserved <= 0.01
