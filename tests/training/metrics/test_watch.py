"""All of it around a loop that does next to nothing."""

import time

import jax
import jax.numpy as jnp
import pytest

from imagewam_jax.checkpoints.store import METRICS_FILE, read_metrics
from imagewam_jax.data.index.tfrecord import walk_records
from imagewam_jax.training.metrics.watch import Watch
from imagewam_jax.training.metrics.work import Work

WATCH = {"profile": (0, 0), "profile_on_signal": 5, "wandb": ""}


def run(workdir, first, last, **section):
    """Steps of 2 ms and more, of which 5 are a row and 10 a checkpoint; returns all rows."""

    @jax.jit
    def step(x):
        return jax.pure_callback(lambda x: (time.sleep(0.002), x + 1)[1], x, x)

    value, began = jnp.float32(first), time.perf_counter() - 0.1
    config = {"watch": WATCH | section}
    with Watch(config, workdir, first, Work(4, 1e6, 1e9), began) as watch:
        for done in watch.steps(last):
            with watch.phase("data_wait"):
                time.sleep(0.001)
            value = step(value)
            watch.dispatched({"loss": value})
            if done % 5 == 0:
                watch.log(done, {"bad_frames": 0})
            if done % 10 == 0:
                with watch.pause("validation"):
                    watch.write("validation", done, [{"loss": value}])
                with watch.pause("checkpoints"):
                    time.sleep(0.02)
                watch.account(done)
    return read_metrics(workdir / METRICS_FILE)


def of_kind(rows, kind):
    return [row for row in rows if row["kind"] == kind]


def test_rows_of_a_run(tmp_path, capsys):
    began = time.perf_counter()
    rows = run(tmp_path, 0, 20)
    took = time.perf_counter() - began
    train = of_kind(rows, "train")
    assert [(row["step"], row["loss"]) for row in train] == [(5, 3), (10, 8), (15, 13), (20, 18)]
    for row in train:
        assert row["seconds_per_step"] > 0.002 and 0 < row["data_wait"] < 1
        assert row["samples_per_second"] == pytest.approx(4 / row["seconds_per_step"])
        assert row["mfu"] == pytest.approx(1e-3 / row["seconds_per_step"])
        assert row["bad_frames"] == 0
    assert [(r["step"], r["loss"]) for r in of_kind(rows, "validation")] == [(10, 10), (20, 20)]
    accounts = of_kind(rows, "goodput")
    assert [row["step"] for row in accounts] == [5, 10, 20, 20]
    last = accounts[-1]
    assert 0.1 + 20 * 0.003 < last["wall_seconds"] < 0.1 + took
    assert last["startup_seconds"] > 0.1 and last["checkpoints_seconds"] >= 0.04
    assert last["steps_seconds"] > 17 * 0.002 and last["data_wait_seconds"] > 17 * 0.001
    assert last["goodput"] == last["steps_seconds"] / last["wall_seconds"]
    out = capsys.readouterr()
    assert f"goodput {last['goodput']:.1%} of" in out.out and "20/20" in out.err
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert len(list(walk_records(events))) == 2 + sum(len(row) - 2 for row in rows)


def test_what_a_killed_process_repeats_is_lost(tmp_path):
    path = tmp_path / METRICS_FILE
    first = run(tmp_path, 0, 17)
    lines = path.read_text().splitlines(keepends=True)
    assert '"goodput", "step": 17' in lines[-1]
    path.write_text("".join(lines[:-1]))  # nobody writes an account when killed
    killed_soon = Watch({"watch": WATCH}, tmp_path, 10, Work(4), time.perf_counter())
    killed_soon._writer.close()
    assert len(read_metrics(path)) == len([r for r in first if r["step"] <= 10]) + 1
    rows = run(tmp_path, 10, 20)
    assert [r["step"] for r in of_kind(rows, "train")] == [5, 10, 15, 20]
    saved = next(row for row in of_kind(first, "goodput") if row["step"] == 10)
    (dropped,) = (row for row in of_kind(first, "train") if row["step"] == 15)
    last = rows[-1]
    assert last["lost_seconds"] == pytest.approx(5 * dropped["seconds_per_step"])
    assert last["startup_seconds"] > saved["startup_seconds"] + 0.1
    assert last["wall_seconds"] > saved["wall_seconds"] + last["lost_seconds"]


def test_an_error_in_the_loop_still_leaves_an_account(tmp_path):
    with pytest.raises(OSError), Watch({"watch": WATCH}, tmp_path, 0, Work(1), 0.0) as watch:
        for _ in watch.steps(3):
            raise OSError
    (row,) = read_metrics(tmp_path / METRICS_FILE)
    assert row["kind"] == "goodput" and row["goodput"] == 0


def test_only_the_first_process_writes(tmp_path, capsys, monkeypatch):
    """All of them trace."""
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert run(tmp_path, 0, 6, profile=(2, 2)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["profile"]
    assert capsys.readouterr() == ("", "")


def test_watching_takes_less_than_a_millisecond_of_a_step(tmp_path):
    """What the loop adds to a step that takes no time: a row for every 20."""
    metrics = jax.block_until_ready({f"metric_{n}": jnp.float32(n) for n in range(7)})
    per_step = []
    for _ in range(5):
        with Watch({"watch": WATCH}, tmp_path, 0, Work(1, 1.0, 1.0), time.perf_counter()) as watch:
            began = time.perf_counter()
            for done in watch.steps(1000):
                with watch.phase("data_wait"):
                    pass
                watch.dispatched(metrics)
                if done % 20 == 0:
                    watch.log(done)
            per_step.append((time.perf_counter() - began) / 1000)
    print(f"{1e6 * min(per_step):.0f} us per step")
    assert min(per_step) < 1e-3
