"""Which steps are traced, where traces are written, and that each trace ends."""

import os
import signal
import threading

import jax
import jax.numpy as jnp
import pytest

from imagewam_jax.training.metrics.profiler import Profiler


def traces(folder):
    """The step of each trace, and how many files it has."""
    return {
        int(path.name): len(list(path.rglob("*.xplane.pb")))
        for path in (folder.iterdir() if folder.exists() else ())
    }


@pytest.fixture
def profiler(tmp_path):
    """Makes profilers, which are closed when the test ends."""
    made = []

    def make(first=0, count=0, on_signal=0):
        made.append(Profiler(tmp_path, first, count, on_signal))
        return made[-1]

    yield make
    for each in made:
        each.close()


def run(profiler, numbers, signals=()):
    """Run steps; the process gets SIGUSR1 after those in `signals`."""
    step, value = jax.jit(lambda x: x + 1), jnp.zeros(())
    for number in numbers:
        profiler.before_step(number, value)
        value = step(value)
        if number in signals:
            os.kill(os.getpid(), signal.SIGUSR1)
    return value


def test_nothing_is_traced_unless_it_is_asked_for(profiler, tmp_path):
    run(profiler(), range(1, 5))
    assert traces(tmp_path) == {}


def test_the_steps_of_the_config(profiler, tmp_path, monkeypatch):
    """The trace begins before the first of them and ends after the last."""
    calls, number = [], 0
    start, stop = jax.profiler.start_trace, jax.profiler.stop_trace
    monkeypatch.setattr(jax.profiler, "start_trace", lambda f: (calls.append(number), start(f)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: (calls.append(number), stop()))
    each = profiler(first=3, count=2)
    for number in range(1, 9):
        each.before_step(number)
    assert calls == [3, 5] and traces(tmp_path) == {3: 1}


def test_a_resumed_run_traces_what_is_left_of_them(profiler, tmp_path):
    run(profiler(first=3, count=4), range(5, 9))
    assert traces(tmp_path) == {5: 1}


def test_the_steps_after_a_signal(profiler, tmp_path):
    """A signal during a trace changes nothing."""
    before = signal.getsignal(signal.SIGUSR1)
    each = profiler(on_signal=3)
    run(each, range(1, 16), signals=(2, 4, 10))
    assert traces(tmp_path) == {3: 1, 11: 1}
    each.close()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_trace_ends_with_the_run(profiler, tmp_path):
    each = profiler(first=2, count=100)
    run(each, range(1, 4))
    assert traces(tmp_path) == {}
    each.close()
    assert traces(tmp_path) == {2: 1}
    jax.profiler.start_trace(tmp_path / "9")  # which fails if there is one already
    jax.profiler.stop_trace()


def test_what_is_traced_by_someone_else_does_not_end_the_run(profiler, tmp_path, capsys):
    jax.profiler.start_trace(tmp_path / "9")
    try:
        assert run(profiler(first=2, count=2), range(1, 6)) == 5
        assert capsys.readouterr().out.count("could not begin a profiler trace") == 1
    finally:
        jax.profiler.stop_trace()
    assert traces(tmp_path) == {9: 1}


def test_hosts_have_folders_of_their_own(profiler, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run(profiler(first=1, count=1), range(1, 3))
    assert len(list((tmp_path / "1" / "process_1").rglob("*.xplane.pb"))) == 1


def test_signals_are_left_alone_outside_the_main_thread(tmp_path):
    failed = []

    def make():
        try:
            Profiler(tmp_path, 0, 0, 5).close()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert not failed
