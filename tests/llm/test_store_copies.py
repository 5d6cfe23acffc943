"""A store of calls that goes from machine to machine by copies: nothing is paid twice, and no account is too low."""

import threading

import pytest

from msm_jax.llm import store as store_module
from msm_jax.llm.request import Finish, Reply, Usage
from msm_jax.llm.store import CallStore, copied
from tests.corpus.gemini import texts

ONE, TWO, THREE, FOUR = texts(4)


def settle(store, request, dollars, key=None, pending=None):
    pending = pending or store.reserve(key or request.prompt, "s", 1.0, 100.0)
    store.settle(pending, request, request.prompt, Reply("text", Finish.STOP, Usage(1, 0, 1), "m"), dollars)


def account(store):
    spent = store.spent()
    return round(spent.paid, 6), round(spent.reserved, 6), spent.lost


@pytest.fixture
def stores(tmp_path):
    made = [CallStore(tmp_path / name, "me") for name in ("a", "b")]
    yield made
    for store in made:
        store.close()


def test_a_store_takes_over_what_the_copy_of_another_has(stores, tmp_path):
    a, b = stores
    copy = tmp_path / "copy"
    settle(a, ONE, 0.25)
    under_way = a.reserve(TWO.prompt, "s", 0.5, 100.0)
    a.open_job("job", {"k": FOUR}, 2.0, 100.0)
    a.copy(copy)
    a.absorb(copy)
    assert account(a) == (0.25, 2.5, 0)
    for _ in range(2):
        b.absorb(copy)
        assert account(b) == (0.25, 2.5, 1)  # what is under way elsewhere may never be heard of
        assert b.replies(ONE.prompt) == a.replies(ONE.prompt) and b.jobs()[0].keys == {"k"} and b.was_batched("k")

    # Both go on, ask the same, and one of them is copied: both calls were paid for.
    settle(a, TWO, 0.4, pending=under_way)
    settle(a, THREE, 0.1)
    settle(b, THREE, 0.2)
    b.drop_job("job")
    b.copy(copy)
    a.absorb(copy)
    assert account(a) == (0.25 + 0.4 + 0.1 + 0.2, 2.0, 0)
    assert len(a.replies(THREE.prompt)) == 1
    a.copy(copy)
    b.absorb(copy)
    assert account(b)[0] >= account(a)[0] and b.replies(TWO.prompt) and b.jobs()


def test_what_is_spent_beside_calls_stays_spent(stores, tmp_path):
    a, b = stores
    a._db.execute("UPDATE payers SET spent = 3.0")
    a.copy(tmp_path / "copy")
    settle(b, ONE, 0.25)
    b.absorb(tmp_path / "copy")
    assert account(b) == (3.25, 0, 0)


def test_copies_are_made_meanwhile_and_at_the_end_whatever_fails(stores, tmp_path, monkeypatch, caplog):
    a, b = stores
    monkeypatch.setattr(store_module, "_COPY_EVERY", 0.01)
    sent, twice = [], threading.Event()

    def send(path):
        sent.append(path)
        if len(sent) == 1:
            raise OSError("503")
        twice.set()

    with pytest.raises(KeyboardInterrupt), copied(a, tmp_path / "copy", send):
        settle(a, ONE, 0.25)
        assert twice.wait(20)
        settle(a, TWO, 0.5)
        raise KeyboardInterrupt
    assert "is not copied for now, and will be tried again (503)" in caplog.text
    with copied(b, tmp_path / "copy", lambda path: None):
        assert account(b) == (0.75, 0, 0)
    assert not list(tmp_path.glob("*.part"))


def test_money_of_jobs_that_were_answered_oddly_or_given_up(stores, tmp_path):
    """A reply that is to no request of its job is kept under the name of the job."""
    store, reply = stores[0], Reply("text", Finish.STOP, Usage(1, 0, 1), "m")
    assert store.open_job("job", {"k": FOUR}, 2.0, 100.0)
    store.settle_job("job", [("another", reply, 0.1), (None, reply, 0.2)])
    assert [len(store.replies(key)) for key in ("another", "k", "job/0", "job/1")] == [0, 0, 1, 1]
    assert account(store) == (0.3, 0, 0) and not store.jobs()

    assert store.open_job("lost", {"l": ONE}, 0.5, 100.0)
    store.lose_job("lost")
    store.copy(tmp_path / "copy")
    stores[1].absorb(tmp_path / "copy")
    assert account(store) == account(stores[1]) == (0.3, 0.5, 1)


def test_the_copy_of_a_store_that_has_gone_on_brings_nothing_back(stores, tmp_path):
    pending = stores[0].reserve("key", "s", 0.7, 100.0)
    stores[0].copy(tmp_path / "copy")
    stores[0].release(pending)
    stores[0].absorb(tmp_path / "copy")
    assert account(stores[0]) == (0, 0, 0)
