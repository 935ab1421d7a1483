"""Listening sockets, and what is said where there can be none."""

import os
import socket
from pathlib import Path

import pytest

from gateway.listening import ListenError, listen, refuse_new, url_of


@pytest.mark.parametrize("count", [1, 3])
def test_all_sockets_share_one_port(count: int) -> None:
    sockets = listen("127.0.0.1", 0, count=count, backlog=16)
    assert len({one.getsockname() for one in sockets}) == 1
    for one in sockets:
        one.close()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:"),
        ("localhost", "http://127.0.0.1:"),
        ("::1", "http://[::1]:"),
        ("::", "http://[::]:"),
    ],
)
def test_any_kind_of_host_can_be_listened_on(host: str, url: str) -> None:
    [listener] = listen(host, 0, count=1, backlog=16)
    with listener:
        assert url_of(listener) == f"{url}{listener.getsockname()[1]}"


def test_the_address_of_everything_serves_both_families() -> None:
    [listener] = listen("::", 0, count=1, backlog=16)
    with listener, socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=5):
        pass


@pytest.mark.parametrize("count", [1, 2])
def test_a_port_that_somebody_shares_is_still_taken(count: int) -> None:
    taken = listen("127.0.0.1", 0, count=2, backlog=16)
    port = taken[0].getsockname()[1]
    with pytest.raises(ListenError, match=f"^port {port} on 127.0.0.1 is already in use$"):
        listen("127.0.0.1", port, count=count, backlog=16)
    for one in taken:
        one.close()


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("192.0.2.1", "cannot listen on 192.0.2.1:8080: this machine has no such address"),
        ("nobody.invalid", "cannot listen on nobody.invalid:8080: no such host"),
    ],
)
def test_an_address_that_is_not_ours_is_one_clear_line(host: str, why: str) -> None:
    with pytest.raises(ListenError) as refusal:
        listen(host, 8080, count=1, backlog=16)
    assert str(refusal.value) == why


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
def test_a_socket_that_takes_no_new_connections_still_serves_those_in_its_queue(host: str) -> None:
    [listener] = listen(host, 0, count=1, backlog=16)
    address = ("127.0.0.1" if host == "::" else host, listener.getsockname()[1])
    with listener, socket.create_connection(address, timeout=5) as waiting:
        refuse_new(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(address, timeout=0.3)
        waiting.sendall(b"sent before it was accepted")
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(5)
            assert accepted.recv(100) == b"sent before it was accepted"
            accepted.sendall(b"answered")
            assert waiting.recv(100) == b"answered"


def test_a_unix_socket_is_shared_and_left_behind_ones_are_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "castgate.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    sockets = listen(f"unix:{path}", 0, count=2, backlog=16)
    assert [url_of(one) for one in sockets] == [f"unix:{path}"] * 2
    assert os.fstat(sockets[0].fileno()).st_ino == os.fstat(sockets[1].fileno()).st_ino, "one queue"
    with pytest.raises(ListenError, match=f"^{path} is already in use$"):
        listen(f"unix:{path}", 0, count=1, backlog=16)
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(path))
        refuse_new(sockets[0])
        assert not path.exists()
        sockets[1].accept()[0].close()
    for one in sockets:
        one.close()


def test_a_path_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("a file of somebody's")
    with pytest.raises(ListenError, match=f"^cannot listen on {path}: Address already in use$"):
        listen(f"unix:{path}", 0, count=1, backlog=16)
    assert path.read_text() == "a file of somebody's"
