import socket

from stillroom.models.local.runtime import choose_port, reserve_ports


def test_engines_take_a_named_port_that_is_free(monkeypatch):
    monkeypatch.setenv("STILLROOM_ENGINE_PORTS", "")
    assert choose_port() == 0
    ports = reserve_ports(2)
    assert len(set(ports)) == 2
    assert choose_port() == ports[0]
    with socket.create_server(("127.0.0.1", ports[0])):
        assert choose_port() == ports[1]
        with socket.create_server(("127.0.0.1", ports[1])):
            assert choose_port() == 0
