"""What a server answers to a browser and to Prometheus."""

import socket
import urllib.error

import pytest

from tests.serving.robots import Robot, observation


def test_pages(server):
    assert server.get("/healthz") == "OK\n" and server.get("/readyz") == "ready\n"
    with Robot(server.url) as robot:
        robot.ask(observation(1, **{"imagewam/session": "<b>left arm</b>"}))
        page = server.get("/")
    assert "&lt;b&gt;left arm&lt;/b&gt;" in page and "<b>left" not in page
    assert "open the faucet" in page and 'http-equiv="refresh"' in page
    assert page.count("data:image/png;base64,") == 1 and "data:image/svg+xml;base64," in page
    assert "http://" not in page and "https://" not in page and "<script" not in page
    metrics = server.get("/metrics")
    for name in (
        'imagewam_requests_total{code="ok"}',
        "imagewam_request_seconds_bucket",
        "imagewam_queue_seconds_sum",
        'imagewam_device_seconds_count{bucket="1",stage="act"}',
        "imagewam_batch_rows_count",
        "imagewam_padding_rows_total",
        "imagewam_received_bytes_total",
        'imagewam_compile_seconds{program="act_8"}',
        "imagewam_ready 1.0",
    ):
        assert name in metrics, name
    with pytest.raises(urllib.error.HTTPError, match="404"):
        server.get("/etc/passwd")


def test_the_head_of_a_page_has_no_body(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\n")
