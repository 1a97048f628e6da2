"""The caller under load sees late, broken and lost answers, and the judge wrong ones."""

import json
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests.load.caller import TRIES, Question, at_rate, in_turn, percentile
from tests.load.parts import DECISIONS, EFFECTS, Judge


@pytest.fixture
def service():
    """Starts a service, and returns its port: `answer(n)` is what the n-th request gets, None breaks its connection."""
    open_sockets = []

    def start(answer):
        listening = socket.create_server(("127.0.0.1", 0))
        open_sockets.append(listening)
        count = iter(range(10**6))

        def talk(one):
            with one:
                while one.recv(65536):
                    said = answer(next(count))
                    if said is None:
                        return
                    one.sendall(said)

        def accept():
            while True:
                try:
                    one, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(one,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return listening.getsockname()[1]

    yield start
    for one in open_sockets:
        one.close()


def said(status=200, body=b"{}"):
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)


def question(i):
    return Question(EFFECTS, b"{}", i)


def test_every_request_is_answered_and_counted_in_its_place(service):
    port = service(lambda n: said(503 if n % 5 == 0 else 200))
    tally = in_turn(port, 4, 100, question)
    assert tally.by_status == {200: 80, 503: 20} and len(tally.of(200)) == 80 and not tally.lost and not tally.errors
    assert np.isfinite(tally.seconds).all()


def test_a_stall_counts_against_all_that_were_due_in_it(service):
    """A caller that waited for the answer before it asked again would see one late answer only."""

    def answer(n):
        if n == 20:
            time.sleep(0.5)
        return said()

    tally = at_rate(service(answer), 200, 1.0, question, most=1)
    assert len(tally.of(200)) + tally.kept == 200 and 70 <= tally.kept <= 120  # nobody was there to ask
    tally = at_rate(service(answer), 200, 1.0, question, most=100)
    assert not tally.kept and percentile(tally.of(200), 1) >= 450


def test_a_broken_connection_is_tried_again_and_a_lost_request_is_said(service):
    tally = in_turn(service(lambda n: None if n == 3 else said()), 1, 20, question)
    assert (tally.broken, tally.lost, tally.by_status) == (1, 0, {200: 20})
    tally = in_turn(service(lambda n: None), 1, 2, question)
    assert (tally.broken, tally.lost, tally.by_status) == (2 * TRIES, 2, {0: 2})


def test_what_the_check_says_of_answers_is_counted(service):
    port = service(lambda n: said(body=b'{"n": %d}' % n))
    tally = in_turn(port, 1, 9, question, lambda q, status, body: "odd" if json.loads(body)["n"] % 2 else None)
    assert dict(tally.faults) == {"odd": 4}


@pytest.fixture
def judge():
    effects = {"v1": (np.array([[0.5, 0.25]]), np.array([[0.1, 0.2]]))}
    log = {"k": {"level": "a", "propensity": 0.5}}
    return Judge(SimpleNamespace(effects=effects, levels=("none", "a", "b"), decisions=lambda: log))


def effects_answer(**changes):
    effects = [{"uplift": 0.5, "uplift_se": 0.1}, {"uplift": 0.25, "uplift_se": 0.2}]
    answer = {"degraded": [], "model": {"version": 1}, "source": "model", "effects": effects, **changes}
    return json.dumps({"answers": [answer]}).encode()


def test_the_judge_knows_a_wrong_effect(judge):
    asked = Question(EFFECTS, b"", 0)
    assert judge(asked, 200, effects_answer()) is None
    assert judge(asked, 500, b"") == "status 500"
    wrong = [{"uplift": 0.5, "uplift_se": 0.1}, {"uplift": np.nextafter(0.25, 1), "uplift_se": 0.2}]
    assert judge(asked, 200, effects_answer(effects=wrong)) == "other effects than were published"
    assert judge(asked, 200, effects_answer(source="batch_effects")).startswith("another source")
    assert judge(asked, 200, effects_answer(source="batch_effects", degraded=["features_stale"])) is None
    assert judge.lacked == {"features_stale": 1}


def decision(key="k", level="a", logged=True, propensity=0.5):
    one = {"request_key": key, "level": level, "logged": logged, "propensity": propensity, "degraded": []}
    return json.dumps({"decisions": [one]}).encode()


def test_the_judge_knows_a_lost_and_a_changed_decision(judge):
    asked = Question(DECISIONS, b"", "k")
    assert judge(asked, 200, decision()) is None and judge.lost() == 0
    assert judge(asked, 200, decision(level="b")) == "another answer under the same key"
    assert judge(asked, 200, decision(key="other")) == "the decision of another request"
    assert judge(asked, 200, decision(logged=False)) == "a level that nobody logged"
    assert judge(asked, 200, decision(level="none", logged=False)) is None
    assert judge(Question(DECISIONS, b"", "gone"), 200, decision(key="gone")) is None and judge.lost() == 1
