"""Work is handed out once, and again to a worker that was restarted."""

import pytest
import ray

from explorer.mailbox import Letter, Mailbox

pytestmark = pytest.mark.ray


@pytest.fixture
def mailbox(ray_cluster):
    actor = Mailbox.remote()
    yield actor
    ray.kill(actor)


def take(mailbox, worker, done=None):
    letter = ray.get(mailbox.take.remote(worker, done), timeout=60)
    return letter and letter.name


def letters(*names):
    return [Letter(name, [ray.put(name)]) for name in names]


def test_worker_keeps_its_letter_until_it_is_done(mailbox):
    ray.get(mailbox.put.remote(letters("a", "b", "c")))
    assert take(mailbox, 0) == "a"
    assert take(mailbox, 1) == "b"
    assert take(mailbox, 0) == "a"  # restarted: it had not finished
    assert take(mailbox, 0, "a") == "c"
    assert take(mailbox, 1) == "b"


def test_one_that_waits_takes_what_comes_and_ends_with_none(mailbox):
    waiting = mailbox.take.remote(0, None)
    assert ray.wait([waiting], timeout=0.2) == ([], [waiting])
    ray.get(mailbox.put.remote([*letters("a"), None, None]))
    letter = ray.get(waiting, timeout=60)
    assert ray.get(letter.contents[0]) == "a"
    assert take(mailbox, 0, "a") is None
    assert take(mailbox, 1) is None
    assert take(mailbox, 1) is None


def test_what_a_lost_worker_had_goes_to_the_next_that_asks(mailbox):
    ray.get(mailbox.put.remote(letters("a", "b")))
    assert take(mailbox, 0) == "a"
    ray.get(mailbox.give_back.remote(0))
    assert take(mailbox, 1) == "a"
    assert take(mailbox, 0) == "b"
    ray.get(mailbox.give_back.remote(2))  # had nothing
    assert take(mailbox, 1) == "a"


def test_stop_leaves_nothing_to_take(mailbox):
    ray.get(mailbox.put.remote(letters("a", "b")))
    assert take(mailbox, 0) == "a"
    ray.get(mailbox.stop.remote(2))
    assert take(mailbox, 1) is None
    assert take(mailbox, 0, "a") is None
