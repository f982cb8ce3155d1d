import socket

from stillroom.models.local.runtime import choose_port, derive_text_config, reserve_ports


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


def test_a_strangers_number_of_labels_is_not_written_out():
    derived = derive_text_config({"model_type": "gpt2", "n_layer": 3, "num_labels": 100_000})
    assert derived["n_layer"] == 3
    assert len(derived.get("id2label") or ()) < 10
