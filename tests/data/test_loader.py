"""Order, hosts, resume and faults of the training stream."""

import dataclasses
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from imagewam_jax.data.anchors import frame_anchors
from imagewam_jax.data.errors import BadFrameError, DataError
from imagewam_jax.data.index import open_index
from imagewam_jax.data.loader import TrainIterator, evaluation_batches
from imagewam_jax.data.samples import SampleReader
from tests.data.conftest import TOY, TOY_SAMPLE, flip_byte, train_shard

GLOBAL_BATCH = 8


@pytest.fixture(scope="module")
def reader(toy_index):
    reader = SampleReader(toy_index, "train", TOY, TOY_SAMPLE)
    yield reader
    reader.close()


@pytest.fixture
def make(reader):
    """Makes iterators with small defaults and closes them."""
    made = []

    def iterator(reader=reader, anchors=None, global_batch=GLOBAL_BATCH, seed=0, **options):
        anchors = frame_anchors(reader.split) if anchors is None else anchors
        options = {"num_threads": 2, "prefetch": 2, **options}
        made.append(TrainIterator(reader, anchors, global_batch=global_batch, seed=seed, **options))
        return made[-1]

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


def test_every_epoch_is_another_permutation_of_all_anchors(reader, make):
    size = reader.split.num_frames
    batches = take(make(), 2 * size // GLOBAL_BATCH + 1)
    order = [frame for batch in batches for frame in frames(batch, reader.split)]
    first, second = order[:size], order[size : 2 * size]
    assert sorted(first) == sorted(second) == list(range(size))
    assert first != second and first != sorted(first)
    index = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(index, np.arange(len(batches) * GLOBAL_BATCH))


def test_a_batch_of_the_stream_is_the_reader_s_batch(reader, make):
    batch = take(make(), 3)[-1]
    expected = reader.read(np.array(frames(batch, reader.split)))
    assert batch.keys() == expected.keys() | {"index", "aug_seed"}
    for key, value in expected.items():
        np.testing.assert_array_equal(batch[key], value, err_msg=key)


def test_threads_do_not_change_the_stream(make):
    assert_batches_equal(take(make(num_threads=1), 6), take(make(num_threads=4, prefetch=6), 6))


def test_the_seed_changes_the_order(reader, make):
    one, other = (take(make(seed=seed), 1)[0] for seed in (0, 1))
    assert frames(one, reader.split) != frames(other, reader.split)
    assert (one["aug_seed"] != other["aug_seed"]).all()


def global_batches(make, num_hosts, count, start=None):
    """Each global batch as {index: (aug_seed, episode, step, actions)}, gathered over the hosts."""
    hosts = []
    for host in range(num_hosts):
        iterator = make(host=host, num_hosts=num_hosts)
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
    state = make(host=1, num_hosts=4).get_state() | {"next_batch": 5}
    assert global_batches(make, 2, 4, start=state) == global_batches(make, 1, 9)[5:]


def test_resume_of_another_stream_names_what_changed(reader, toy_index, make):
    state = make().get_state()
    anchors = frame_anchors(reader.split)
    other_spec = dataclasses.replace(TOY_SAMPLE, horizon=8)
    other_set = dataclasses.replace(TOY, relative_action_mask=(False,) * 4)
    for changed, names in (
        (make(seed=1), "order: .*, seed: 0 -> 1"),
        (make(global_batch=16), "global_batch: 8 -> 16"),
        (make(anchors=anchors[::2]), "anchors: '138:.* -> '69:"),
        (make(SampleReader(toy_index, "train", TOY, other_spec)), "sample: .*'horizon': 8"),
        (make(SampleReader(toy_index, "train", other_set, TOY_SAMPLE)), "relative_action_mask: "),
        (make(SampleReader(toy_index, "val", TOY, TOY_SAMPLE)), "split: 'train' -> 'val'"),
    ):
        with pytest.raises(DataError, match=f"cannot resume the data stream.*{names}"):
            changed.set_state(state)


def test_resume_on_other_data_is_an_error(reader, toy_index, make):
    other = dataclasses.replace(toy_index, checksum="0" * 16)
    state = make().get_state()
    with pytest.raises(DataError, match=f"index: '{toy_index.checksum}' -> '0000"):
        make(SampleReader(other, "train", TOY, TOY_SAMPLE)).set_state(state)


def test_a_bad_frame_stops_the_stream_with_its_name(toy_copy, make):
    index = open_index(toy_copy, TOY)
    column = index.splits["train"].images["observation/image"]
    flip_byte(train_shard(toy_copy, 0), int(column.offset[0]) + 100)
    with pytest.raises(BadFrameError, match="episode 0, step 0 "):
        take(make(SampleReader(index, "train", TOY, TOY_SAMPLE)), 138 // GLOBAL_BATCH + 1)


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"num_hosts": 3}, "a global batch of 8 does not split over 3 hosts"),
        ({"host": 2, "num_hosts": 2}, "host 2 of 2"),
        ({"anchors": np.array([], np.int64)}, "no anchors"),
    ],
)
def test_an_impossible_stream(make, options, complaint):
    with pytest.raises(DataError, match=complaint):
        make(**options)


@pytest.mark.parametrize("change", [{"action_dim": 7}, {"state_dim": 8}])
def test_a_configured_width_that_is_not_the_data_s(toy_index, make, change):
    wide = SampleReader(toy_index, "train", TOY, dataclasses.replace(TOY_SAMPLE, **change))
    (name, width), *_ = change.items()
    with pytest.raises(DataError, match=rf"has [45] dimensions, the configured {name} is {width}"):
        make(wide)


def test_evaluation_visits_each_anchor_once_in_order(toy_index):
    reader = SampleReader(toy_index, "val", TOY, TOY_SAMPLE)
    anchors = frame_anchors(reader.split, every=5)
    batches = list(evaluation_batches(reader, anchors, 4))
    assert [len(batch["index"]) for batch in batches] == [4, 4, 3]
    found = [frame for batch in batches for frame in frames(batch, reader.split)]
    assert found == anchors.tolist()
    index = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(index, np.arange(len(anchors)))


def test_the_training_process_imports_neither_tensorflow_nor_torch(toy):
    script = f"""
        import pkgutil, importlib, sys
        import imagewam_jax.data
        for module in pkgutil.iter_modules(imagewam_jax.data.__path__):
            importlib.import_module(f"imagewam_jax.data.{{module.name}}")
        from imagewam_jax.data.anchors import frame_anchors
        from imagewam_jax.data.index import open_index
        from imagewam_jax.data.loader import TrainIterator
        from imagewam_jax.data.samples import SampleReader
        from tests.data.conftest import TOY, TOY_SAMPLE
        reader = SampleReader(open_index({str(toy.dataset_dir)!r}, TOY), "train", TOY, TOY_SAMPLE)
        stream = TrainIterator(reader, frame_anchors(reader.split), global_batch=4, seed=0)
        for _ in range(3):
            assert next(stream)["images"].any()
        found = {{"tensorflow", "tensorflow_datasets", "torch"}} & sys.modules.keys()
        assert not found, found
        print("clean")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "clean"
