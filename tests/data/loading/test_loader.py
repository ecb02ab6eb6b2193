"""Order, hosts, resume and faults of the training stream."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from imagewam_jax.data.index.dataset_index import open_index
from imagewam_jax.data.loading.loader import Source, TrainIterator
from imagewam_jax.data.loading.samples import SampleReader
from imagewam_jax.errors import DataError
from tests.data.conftest import flip_byte, train_shard
from tests.data.toy import TOY, TOY_ROW, TOY_SAMPLE, toy_data

GLOBAL_BATCH = 8


@pytest.fixture(scope="module")
def source(toy):
    """All samples of the split "train", to make streams of."""
    (source,) = toy_data(toy.dataset_dir).sources("train")
    yield source
    source.reader.close()


@pytest.fixture(scope="module")
def split(source):
    return source.reader.split


@pytest.fixture
def make(source):
    """Makes iterators with small defaults and closes them."""
    made = []

    def iterator(*sources, global_batch=GLOBAL_BATCH, seed=0, **options):
        options = {"num_threads": 2, "prefetch": 2, **options}
        stream = TrainIterator(sources or [source], global_batch=global_batch, seed=seed, **options)
        made.append(stream)
        return stream

    yield iterator
    for one in made:
        one.close()


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def frames(batch, split):
    return (split.episode_start[batch["episode"]] + batch["step"]).tolist()


def assert_batches_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_every_epoch_is_another_permutation_of_all_start_frames(split, make):
    size = split.num_frames
    batches = take(make(), 2 * size // GLOBAL_BATCH + 1)
    order = [frame for batch in batches for frame in frames(batch, split)]
    first, second = order[:size], order[size : 2 * size]
    assert sorted(first) == sorted(second) == list(range(size))
    assert first != second and first != sorted(first)
    index = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(index, np.arange(len(batches) * GLOBAL_BATCH))


def test_a_batch_of_the_stream_is_the_reader_s_batch(source, split, make):
    batch = take(make(), 3)[-1]
    expected = source.reader.read(np.array(frames(batch, split)), batch["aug_seed"])
    assert batch.keys() == expected.keys() | {"index", "aug_seed"}
    for key, value in expected.items():
        np.testing.assert_array_equal(batch[key], value, err_msg=key)


def test_threads_do_not_change_the_stream(make):
    assert_batches_equal(take(make(num_threads=1), 6), take(make(num_threads=4, prefetch=6), 6))


def test_a_batch_that_is_kept_stays_as_it_is(make):
    """Others are read into the memory of those that are not."""
    stream, same = make(), make()
    kept, first = next(stream), next(same)
    copy = {key: value.copy() for key, value in first.items()}
    for _ in range(20):
        next(stream)
    assert_batches_equal([kept], [copy])


def test_the_seed_changes_the_order(split, make):
    one, other = (take(make(seed=seed), 1)[0] for seed in (0, 1))
    assert frames(one, split) != frames(other, split)
    assert (one["aug_seed"] != other["aug_seed"]).all()


def rows_of(host, num_hosts):
    """The rows of each global batch that a host reads, where hosts share it equally."""
    each = GLOBAL_BATCH // num_hosts
    return np.arange(host * each, (host + 1) * each)


def global_batches(make, num_hosts, count, start=None):
    """Each global batch as {index: (aug_seed, episode, step, actions)}, gathered over the hosts."""
    hosts = []
    for host in range(num_hosts):
        iterator = make(rows=rows_of(host, num_hosts))
        if start:
            iterator.set_state(start)
        hosts.append(take(iterator, count))
    return [
        {
            int(batch["index"][row]): tuple(
                batch[key][row].tolist() for key in ("aug_seed", "episode", "step", "actions")
            )
            for batch in parts
            for row in range(GLOBAL_BATCH // num_hosts)
        }
        for parts in zip(*hosts, strict=True)
    ]


@pytest.mark.parametrize("num_hosts", [2, 4, 8])
def test_any_number_of_hosts_sees_the_same_global_batches(make, num_hosts):
    count = 20  # more than one epoch of 138 samples
    assert global_batches(make, num_hosts, count) == global_batches(make, 1, count)


@pytest.mark.parametrize("stop", [0, 1, 7, 17, 18, 40])
def test_resume_at_any_step_is_exact(make, stop):
    uninterrupted = take(make(), stop + 4)
    iterator = make()
    take(iterator, stop)
    state = json.loads(json.dumps(iterator.get_state()))
    assert state["next_batch"] == stop
    resumed = make()
    resumed.set_state(state)
    assert_batches_equal(take(resumed, 4), uninterrupted[stop:])
    assert resumed.get_state()["next_batch"] == stop + 4


def test_an_iterator_can_go_back(make):
    iterator = make()
    state = iterator.get_state()
    first = take(iterator, 3)
    iterator.set_state(state)
    assert_batches_equal(take(iterator, 3), first)


def test_resume_on_another_number_of_hosts_is_exact(make):
    state = make(rows=rows_of(1, 4)).get_state() | {"next_batch": 5}
    assert global_batches(make, 2, 4, start=state) == global_batches(make, 1, 9)[5:]


def test_resume_of_another_stream_names_what_changed(toy, source, make):
    state = make().get_state()
    (other_horizon,) = toy_data(toy.dataset_dir, horizon=8).sources("train")
    action = dict(TOY_ROW["action"], relative=(False,) * 4)
    rows = {"toy_arm": {**TOY_ROW, "action": action}}
    (other_row,) = toy_data(toy.dataset_dir, rows=rows).sources("train")
    (other_split,) = toy_data(toy.dataset_dir).sources("val")
    for changed, names in (
        (make(seed=1), "order: .*, seed: 0 -> 1"),
        (make(global_batch=16), "global_batch: 8 -> 16"),
        (make(source._replace(start_frames=source.start_frames[::2])), "'138:.* -> .*'69:"),
        (make(other_horizon), "sample: .*'horizon': 8"),
        (make(other_row), "datasets: .*'standard': "),
        (make(other_split), "'split': 'train'.* -> .*'split': 'val'"),
    ):
        with pytest.raises(DataError, match=f"cannot resume the data stream.*{names}"):
            changed.set_state(state)


@pytest.fixture
def damaged(toy_copy):
    """Makes the source of a set in which the first images of a few frames are damaged."""

    def make(*frames):
        index = open_index(toy_copy)
        split = index.splits["train"]
        column = split.images["observation/image"]
        for frame in frames:
            shard = int(split.episode_shard[split.frame_episode[frame]])
            flip_byte(train_shard(toy_copy, shard), int(column.offset[frame]) + 100)
        (source,) = toy_data(toy_copy).sources("train")
        return source

    return make


def test_a_bad_frame_stops_the_stream_with_its_name(damaged, make):
    with pytest.raises(DataError, match=r"1 bad frames among 138, .*'train', episode 0, step 0 "):
        take(make(damaged(0)), 138 // GLOBAL_BATCH + 1)


def test_allowed_bad_frames_are_replaced_by_the_next_counted_and_logged(
    damaged, source, make, caplog
):
    """Always by the same, on any number of hosts; every other sample stays what it was."""
    count = 138 // GLOBAL_BATCH + 1
    whole = take(make(), count)
    split = source.reader.split
    first = int(split.episode_start[np.argmax(np.diff(split.episode_start))])
    frames_of_bad = {first + 18, first + 19}  # which are also the targets of two others
    bad = damaged(*frames_of_bad)
    with caplog.at_level("WARNING"):
        stream = make(bad, bad_share=0.02)
        found = take(stream, count)
    assert len(stream.bad_frames) == 2
    assert sum("the next sample of its dataset is taken" in m for m in caplog.messages) == 2
    replaced = 0
    for one, other in zip(found, whole, strict=True):
        for row, frame in enumerate(frames(other, split)):
            # Samples with a bad current or target image move on to the next that has neither.
            wanted = frame
            while {wanted, target_of(source, wanted)} & frames_of_bad:
                wanted += 1
            replaced += wanted != frame
            assert frames(one, split)[row] == wanted
    assert replaced >= 4
    assert_batches_equal(take(make(bad, bad_share=0.02), count), found)
    rows = np.arange(GLOBAL_BATCH)  # of which hosts need not hold neighbours
    hosts = [take(make(bad, bad_share=0.02, rows=rows[h::2]), count) for h in range(2)]
    for row in rows:
        part, place = hosts[row % 2][7], row // 2
        np.testing.assert_array_equal(part["images"][place], found[7]["images"][row])


def target_of(source, frame):
    split = source.reader.split
    return min(frame + 16, int(split.episode_start[split.frame_episode[frame] + 1]) - 1)


def test_more_bad_frames_than_are_allowed(damaged, make):
    with pytest.raises(DataError, match=r"3 bad frames among 138, more than .* 0.02 .*data check"):
        take(make(damaged(10, 60, 110), bad_share=0.02), 138 // GLOBAL_BATCH + 1)


def test_no_readable_sample_at_all(damaged, make):
    source = damaged(50, 51)
    only = source._replace(start_frames=np.array([50, 51]))
    with pytest.raises(DataError, match="toy_arm: no sample has readable images"):
        take(make(only, bad_share=1.0), 1)


def mixed(source, sizes, weights):
    """The same split as several datasets of different sizes."""
    numbers = range(len(sizes))
    readers = [
        SampleReader(source.reader.split, source.reader.standardized, TOY, TOY_SAMPLE, dataset_id=n)
        for n in numbers
    ]
    return [
        Source(readers[n], source.start_frames[: sizes[n]], weights[n], {"number": n})
        for n in numbers
    ]


def test_shares_of_a_mixture_are_exact_at_all_times(source, make):
    """Each dataset is still a permutation per epoch, and all are there from the first batch on."""
    sizes, weights = (100, 138, 7), (0.25, 0.7, 0.05)
    sources = mixed(source, sizes, weights)
    batches = take(make(*sources, global_batch=40), 60)
    ids = np.concatenate([batch["dataset_id"] for batch in batches])
    for count in (40, 200, 2400):
        share = np.bincount(ids[:count], minlength=3) / count
        np.testing.assert_allclose(share, weights, atol=min(0.025, 2 / count + 0.002))
    order = np.concatenate([frames(batch, source.reader.split) for batch in batches])
    for number, size in enumerate(sizes):
        mine = order[ids == number]
        for epoch in range(len(mine) // size):
            assert sorted(mine[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert (order[ids == 0][:100] != order[ids == 1][:100]).any()


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_a_mixture_on_any_number_of_hosts_and_after_a_resume(source, make, num_hosts):
    def stream(**options):
        return make(*mixed(source, (100, 138, 7), (0.2, 0.7, 0.1)), **options)

    whole = take(stream(), 12)
    state = json.loads(json.dumps(stream(rows=rows_of(1, 8)).get_state())) | {"next_batch": 5}
    for host in range(num_hosts):
        rows = rows_of(host, num_hosts)
        resumed = stream(rows=rows)
        resumed.set_state(state)
        for found, expected in zip(take(resumed, 7), whole[5:], strict=True):
            for key in expected:
                np.testing.assert_array_equal(found[key], expected[key][rows], key)


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"global_batch": 0}, "a global batch of 0 samples"),
        ({"rows": np.arange(4, 9)}, r"rows \[4, 5, 6, 7, 8\] of a global batch of 8"),
        ({"rows": np.arange(0)}, r"rows \[\] of a global batch of 8"),
        ({"bad_share": 1.5}, "the share of bad frames is 1.5"),
    ],
)
def test_an_impossible_stream(make, options, complaint):
    with pytest.raises(DataError, match=complaint):
        make(**options)


def test_a_stream_of_nothing(source, make):
    with pytest.raises(DataError, match="toy_arm: no start frames"):
        make(source._replace(start_frames=np.array([], np.int64)))


def test_the_training_process_imports_neither_tensorflow_nor_torch(toy):
    script = f"""
        import pkgutil, importlib, sys
        import imagewam_jax.data
        for module in pkgutil.walk_packages(imagewam_jax.data.__path__, "imagewam_jax.data."):
            importlib.import_module(module.name)
        from imagewam_jax.data.loading.loader import TrainIterator
        from tests.data.toy import toy_data
        from pathlib import Path
        sources = toy_data(Path({str(toy.dataset_dir)!r})).sources("train")
        stream = TrainIterator(sources, global_batch=4, seed=0)
        for _ in range(3):
            assert next(stream)["images"].any()
        found = {{"tensorflow", "tensorflow_datasets", "torch"}} & sys.modules.keys()
        assert not found, found
        print("clean")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "clean"
