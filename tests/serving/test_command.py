"""`imagewam serve` from its start to SIGTERM, under load; and what it refuses to start with."""

import logging
import re
import signal
import socket
import subprocess
import threading
import time

import pytest
from websockets.exceptions import ConnectionClosed

from imagewam_jax import cli
from launch.local import IMAGEWAM
from tests.serving.robots import Robot, observation
from tests.training.tiny import trained_run


@pytest.fixture(autouse=True)
def log():
    """The verb takes the package's log for itself; other tests have it back."""
    package = logging.getLogger("imagewam_jax")
    before = package.handlers, package.propagate, package.level
    yield
    package.handlers, package.propagate = before[:2]
    package.setLevel(before[2])


def test_sigterm_under_load():
    """Robots get every answer that was begun, and then 1001; the server ends well."""
    command = [*IMAGEWAM, "serve", f"--checkpoint={trained_run()}"]
    command += ["--port=0", "--buckets=1,4", "--rate=1e6", "--text-encoder=config"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        url = re.fullmatch(r"listening on (ws://127\.0\.0\.1:\d+)\n", process.stdout.readline())[1]
        ends, answers = [], []
        asked = threading.Barrier(5)

        def play(number):
            with Robot(url, open_timeout=120) as robot:
                prompt = "wash it" if number == 0 else "open the faucet"
                robot.ask(observation(number, prompt=prompt))
                asked.wait()
                try:
                    while True:
                        answers.append(robot.ask(observation(number)))
                except ConnectionClosed as closed:
                    ends.append(closed.rcvd.code)

        threads = [threading.Thread(target=play, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        asked.wait(300)
        while len(answers) < 40:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(30)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert ends == [1001] * 4 and all(isinstance(each, dict) for each in answers)
    assert "compiled for 1 robot in " in out and "compiled for 4 robots in " in out
    assert out.endswith("stopped\n")
    assert len(re.findall(r"chunks in \d+ s, closed with 1001", err)) == 4
    assert "encoded wash it in " in err and "Traceback" not in err


def fails(capsys, *arguments: str) -> str:
    assert cli.main(["serve", *arguments]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=/no/run"], "/no/run: no such directory"),
        (["--host=0.0.0.0"], "--host 0.0.0.0: without tokens only this machine may connect"),
        (["--host=203.0.113.7", "--insecure"], "cannot listen on 203.0.113.7, port 0"),
        (["--tokens=/no/tokens"], "--tokens /no/tokens: cannot be read"),
        (["--certificate=/no/pem"], "--certificate and --private-key: give both"),
        (["--buckets=0,1"], r"buckets \[0, 1\]: expected sizes of batches from 1"),
        (["--key=wrist=x"], r"keys of \['wrist'\]: the policy takes \['primary', 'state', 'pro"),
        (["--key=primary=prompt"], "expected a key of its own for each"),
        (["--image-size=9000x9000"], "images of 9000 x 9000 from 1 cameras: expected"),
        (["--real-time=trained"], r"real_time is 'trained', expected one of \['guided', 'identity"),
        (["--euler-steps=0"], "euler_steps: expected a whole number from 1, found 0"),
        (["--text-tokens=3"], "text_tokens is 3, an instruction that the policy knows may have 20"),
        (["--dataset=toy"], "the policy was trained on .* not 'toy'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_it_does_not_start_with(arguments, message, capsys):
    checkpoint = [f"--checkpoint={trained_run()}", "--port=0"]
    assert re.search(message, fails(capsys, *checkpoint, *arguments))


def test_a_port_that_is_taken(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        err = fails(capsys, f"--checkpoint={trained_run()}", f"--port={port}")
    assert f"cannot listen on 127.0.0.1, port {port}: " in err


@pytest.mark.parametrize("argument", ["--image-size=64", "--key=primary", "--buckets=one"])
def test_arguments_that_are_not_what_they_should_be(argument, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "--checkpoint=run", argument])
    assert ended.value.code == 2
    assert f"argument {argument.split('=')[0]}: invalid " in capsys.readouterr().err
