"""Connections: answers go out at once, nothing is waited for without an end, and too much is refused by its head."""

import asyncio
import contextlib
import json
import socket
import time

import pytest

from tests.serving.published import config_of, publish, running
from uplift_spark.serving.connections import ServingConnection
from uplift_spark.serving.guard import Overload, Place

HEAD = b"POST /v1/effects HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
BODY = b'{"unit_id": "u000001"}'
WHOLE = HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture
def service(tmp_path, trained):
    """A service that has two requests at hand at most, and waits a second for heads."""
    config = config_of(tmp_path, max_running=2, timeout_seconds=30)
    publish(config, *trained, 3)
    with running(config, idle=1) as service:
        yield service


@contextlib.contextmanager
def connected(service):
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as one:
        yield one


def answer_on(one):
    """Status, headers and body of the next answer."""
    came = b""
    while b"\r\n\r\n" not in came:
        more = one.recv(65536)
        assert more, f"closed after {came!r}"
        came += more
    head, _, body = came.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    while len(body) < int(headers["content-length"]):
        body += one.recv(65536)
    return int(lines[0].split()[1]), headers, body


def is_closed(one):
    with contextlib.suppress(ConnectionResetError):
        return one.recv(1000) == b""
    return True


def full(service):
    """A context in which the service has as many requests at hand as it may have."""
    overload = service.app.state.overload

    @contextlib.contextmanager
    def held():
        places = [Place(overload) for _ in range(2)]
        for place in places:
            place.take()
        yield
        for place in places:
            place.leave()

    return held()


def test_answers_go_out_at_once_also_on_sockets_that_workers_share(tmp_path, trained):
    seen = []

    class Watched(ServingConnection):
        def connection_made(self, transport):
            super().connection_made(transport)
            seen.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    config = config_of(tmp_path)
    publish(config, *trained, 3)
    with running(config, http=Watched) as service:
        assert service.post("/v1/effects", {"unit_id": "u000001"})[0] == 200
    assert seen and all(seen)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/effects HTTP/1.1\r\nhost: x\r\n"])
def test_who_sends_no_head_is_not_waited_for(service, sent):
    """However little by little: each line of it would begin the wait anew, if the wait were for silence."""
    with connected(service) as one:
        one.sendall(sent)
        start = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() < start + 10:
                one.settimeout(0.3)
                try:
                    if is_closed(one):
                        break
                except TimeoutError:
                    one.sendall(b"x-more: 1\r\n" if sent else b"")
        assert time.monotonic() < start + 5


def test_the_second_head_of_a_connection_is_not_waited_for_either(service):
    with connected(service) as one:
        one.sendall(WHOLE)
        assert answer_on(one)[0] == 200
        one.sendall(HEAD)
        assert is_closed(one)


def test_an_endless_head_is_refused(service):
    with connected(service) as one:
        line = b"x-%d: " + b"y" * 1000 + b"\r\n"
        with contextlib.suppress(OSError):
            one.sendall(HEAD + b"".join(line % i for i in range(200)))
        status, _, body = answer_on(one)
        assert status == 400 and b"send fewer headers" in body and is_closed(one)


def test_chunks_of_one_byte_are_taken_and_what_is_no_body_is_limited(service):
    chunked = HEAD + b"transfer-encoding: chunked\r\n\r\n"
    with connected(service) as one:
        one.sendall(chunked + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n")
        assert answer_on(one)[0] == 200
    with connected(service) as one:
        with contextlib.suppress(OSError):
            one.sendall(chunked + b"1;" + b"e" * 200_000 + b"\r\n{\r\n")
        assert answer_on(one)[0] == 400


def test_too_much_is_refused_by_its_head_and_the_connection_goes_on(service):
    with connected(service) as one:
        with full(service):
            one.sendall(WHOLE)
            status, headers, body = answer_on(one)
            assert (status, headers["retry-after"]) == (503, "1")
            assert json.loads(body)["error"] == "too many requests are under way: try again"
            assert headers["x-request-id"] == json.loads(body)["request_id"]
            one.sendall(LIVE)
            assert answer_on(one)[0] == 200  # health is answered however much there is to do
        one.sendall(WHOLE)
        status, _, body = answer_on(one)
        assert status == 200 and json.loads(body)["answers"][0]["unit_id"] == "u000001"
    counts = [line for line in service.get("/metrics")[1].splitlines() if line.startswith("uplift_requests_total")]
    assert 'uplift_requests_total{path="/v1/effects",status="503"} 1.0' in counts


def test_a_refused_body_is_passed_over_and_not_without_end(service):
    with connected(service) as one, full(service):
        one.sendall(HEAD + b"content-length: 1000\r\n\r\n")
        assert answer_on(one)[0] == 503
        one.sendall(b"x" * 1000 + LIVE)
        assert answer_on(one)[0] == 200
    with connected(service) as one, full(service):
        one.sendall(HEAD + b"content-length: 1000000\r\n\r\n")
        assert answer_on(one)[0] == 503
        with contextlib.suppress(OSError):
            one.sendall(b"x" * 1_000_000)
        assert is_closed(one)


UNKNOWN_PATH = HEAD.replace(b"effects", b"nothing") + b"content-length: 1000000\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "more"),
    [(WHOLE, b"\r\n"), (UNKNOWN_PATH, b"x"), (HEAD + b"content-length: 1000\r\n\r\n", b""), (LIVE, b"\r\n")],
)
def test_what_comes_after_an_answer_and_is_no_request_is_not_waited_for(service, sent, more):
    """Blanks, or a body that was answered by its head: one byte of it, and uvicorn would wait for ever."""
    with connected(service) as one, full(service) if not more else contextlib.nullcontext():
        one.settimeout(10)
        one.sendall(sent)
        assert answer_on(one)[0] in (200, 404, 503)
        start = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() < start + 10:
                one.sendall(more)
                one.settimeout(0.3)
                with contextlib.suppress(TimeoutError):
                    if is_closed(one):
                        break
        assert time.monotonic() < start + 5


def test_a_refusal_is_framed_as_its_request_wants_it(service):
    head_alone, last = b"HEAD /v1/effects HTTP/1.1\r\nhost: x\r\n\r\n", HEAD + b"connection: close\r\n"
    with connected(service) as one, full(service):
        one.sendall(head_alone + LIVE)
        came = b""
        while b"live" not in came:
            came += one.recv(65536)
        refusal, _, rest = came.partition(b"\r\n\r\n")
        assert b" 503 " in refusal and rest.startswith(b"HTTP/1.1 200 ")  # an answer to HEAD has no body
    for sent in (last + b"content-length: 2\r\n\r\n{}", WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0")):
        with connected(service) as one, full(service):
            one.sendall(sent)
            status, headers, _ = answer_on(one)
            start = time.monotonic()
            assert (status, headers["connection"]) == (503, "close") and is_closed(one)
            assert time.monotonic() < start + 0.9  # before a connection without a request would end


def test_who_reads_no_answer_keeps_no_place(service):
    """Two such callers, and all others would be refused for ever."""
    several = json.dumps({"units": [{"unit_id": "u000001"}] * 1000}).encode()
    with connected(service) as one, connected(service) as other:
        with contextlib.suppress(OSError):
            for each in (one, other):
                each.settimeout(2)
                each.sendall((HEAD + b"content-length: %d\r\n\r\n%s" % (len(several), several)) * 60)
        time.sleep(3)  # by then all that the kernel keeps of answers is full
        end = time.monotonic() + 30
        while service.post("/v1/effects", {"unit_id": "u000001"})[0] != 200:
            time.sleep(0.1)
            assert time.monotonic() < end
        while service.app.state.overload.running:
            time.sleep(0.1)
            assert time.monotonic() < end


def test_another_protocol_is_refused_and_no_body_is_taken_for_a_request(service):
    upgrade = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n"
    hidden = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    for parts in (
        [WHOLE.replace(b"host: x\r\n", b"host: x\r\n" + upgrade)],
        [HEAD + upgrade + b"content-length: 46\r\n\r\n", hidden],
    ):
        with connected(service) as one:
            with contextlib.suppress(OSError):
                for part in parts:
                    one.sendall(part)
                    time.sleep(0.1)
            status, _, body = answer_on(one)
            assert status == 400 and b"send no header Upgrade" in body and is_closed(one)
    assert service.app.state.overload.running == 0


def test_requests_of_one_connection_are_answered_in_their_order(service):
    with connected(service) as one:
        one.sendall(WHOLE * 3 + LIVE)
        came = b""
        while b"live" not in came or came.count(b"HTTP/1.1 200") < 4:
            came += one.recv(65536)
        assert came.count(b'"u000001"') == 3
    assert service.app.state.overload.running == 0


def test_bodies_that_never_come_take_nobodys_place(service):
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            one = stack.enter_context(connected(service))
            one.sendall(HEAD + b"content-length: 100\r\n\r\n{")
        assert service.post("/v1/effects", {"unit_id": "u000001"})[0] == 200
    end = time.monotonic() + 10
    while service.app.state.overload.running and time.monotonic() < end:
        time.sleep(0.02)
    assert service.app.state.overload.running == 0


def test_bodies_that_come_late_and_together_are_too_many_too(service, monkeypatch):
    with full(service):
        service.app.state.overload.running -= 1
        with connected(service) as one, connected(service) as other:
            for each in (one, other):
                each.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(BODY))
            time.sleep(0.2)
            service.app.state.overload.running += 1
            for each in (one, other):
                each.sendall(BODY)
            assert answer_on(one)[0] == answer_on(other)[0] == 503


def test_every_place_is_left_whatever_becomes_of_a_request(service):
    for sent in (
        WHOLE,
        HEAD.replace(b"effects", b"nothing") + b"content-length: 2\r\n\r\n{}",
        HEAD + b"content-length: 3\r\n\r\n{x}",
        HEAD + b"content-length: 9999999\r\n\r\n",
        LIVE,
    ):
        with connected(service) as one:
            one.sendall(sent)
            assert answer_on(one)[0] in (200, 404, 413, 422)
    with connected(service) as one:
        one.sendall(WHOLE)  # and goes away
    time.sleep(0.3)
    assert service.app.state.overload.running == 0


def test_those_who_come_are_seen_to_after_a_few_answers():
    """A hundred requests that came together do not keep the loop from what comes meanwhile."""

    async def seen():
        overload, order = Overload(100, lambda *_: None), []

        async def request(i):
            await overload.turn()
            order.append(i)

        async def newcomer():
            while len(order) < 100:
                order.append("in between")
                await asyncio.sleep(0)

        await asyncio.gather(*map(request, range(100)), newcomer())
        return order

    order = asyncio.run(seen())
    answered = [i for i in order if i != "in between"]
    assert answered == list(range(100))  # who came first is first
    longest = max(len(run.split()) for run in " ".join(map(str, order)).split("in between"))
    assert longest <= 16 and order.count("in between") >= 10


def test_a_turn_comes_though_one_who_waited_went_away():
    async def seen():
        overload, order = Overload(100, lambda *_: None), []

        async def request(i):
            await overload.turn()
            order.append(i)

        tasks = [asyncio.create_task(request(i)) for i in range(30)]
        await asyncio.sleep(0)
        tasks[20].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)
        await asyncio.wait_for(request("later"), 5)
        return order

    assert asyncio.run(seen()) == [*(i for i in range(30) if i != 20), "later"]
