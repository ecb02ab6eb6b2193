"""Sources of tensors: odd files, and sources that wrap others."""

import argparse
import collections
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io import torch_files
from imagewam_jax.weights.io.files import SafetensorsFile, open_weights
from imagewam_jax.weights.io.tensors import ArraySource, Renamed, TensorSpec, read_checked
from imagewam_jax.weights.io.torch_files import TorchFile
from imagewam_jax.weights.layouts.lora import MergedLora, merged
from imagewam_jax.weights.layouts.mapping import ForeignView, pieces, rule
from tests.weights.foreign import to_tree


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def opened(torch, tmp_path):
    """Save something as a `.pt` file."""

    def write(contents, **options) -> TorchFile:
        torch.save(contents, tmp_path / "model.pt", **options)
        return open_weights(tmp_path / "model.pt")

    return write


def test_tensors_and_what_else_is_in_a_file(opened, torch):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "float": torch.randn(3, 5, generator=generator),
        "transposed": torch.randn(3, 5, generator=generator).T,
        "bfloat16": torch.randn(4, generator=generator).to(torch.bfloat16),
        "scalar": torch.tensor(7),
        "expanded": torch.ones(1).expand(4),
        "negated": torch.complex(torch.ones(3), torch.ones(3)).conj().imag,
        "parameter": torch.nn.Parameter(torch.randn(2, generator=generator)),
    }
    values = {"step": 3, "torch_dtype": "torch.float32", "betas": (0.9, 0.95), "none": None}
    file = opened({"mot": tensors, **values})
    assert file.values == values and list(file.specs) == [f"mot.{name}" for name in tensors]
    for name, tensor in tensors.items():
        found = read_checked(file, f"mot.{name}")
        expected = tensor.detach().resolve_neg().to(torch.float64).numpy()
        np.testing.assert_array_equal(found.astype(np.float64), expected, err_msg=name)


SPECIAL = {
    "sparse (torch.sparse_coo)": lambda torch: torch.eye(3).to_sparse(),
    "sparse (torch.sparse_csr)": lambda torch: torch.eye(3).to_sparse_csr(),
    "quantised (torch.qint8)": lambda torch: torch.quantize_per_tensor(
        torch.eye(3), 0.1, 0, torch.qint8
    ),
    "without numbers (meta)": lambda torch: torch.empty(3, device="meta"),
    "nested": lambda torch: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_plain(opened, torch, kind):
    with pytest.raises(ConversionError) as error:
        opened({"mot": {"a": torch.zeros(2), "b": SPECIAL[kind](torch)}})
    assert f"model.pt: mot.b is {kind}, expected a plain tensor" in str(error.value)


@pytest.mark.parametrize(
    ("wrap", "kind"),
    [
        (lambda t: [t], "list"),
        (lambda t: (1, {"deep": [t]}), "tuple"),
        (lambda t: [[], [{"x": t}]], "list"),
        (lambda t: t.untyped_storage(), "TypedStorage"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_without_a_name(opened, torch, wrap, kind):
    message = f"model.pt: mot.b is a {kind} with tensors in it, which have no names"
    with pytest.raises(ConversionError, match=message):
        opened({"mot": {"a": torch.zeros(2), "b": wrap(torch.zeros(3))}})


@pytest.mark.parametrize(
    ("contents", "name"),
    [
        (lambda x, y: {"mot": {"a": x}, "mot.a": y}, "mot.a"),
        (lambda x, y: {"mot": {0: x, "0": y}}, "mot.0"),
        (lambda x, y: {"mot": {"step": 3}, "mot.step": y}, "mot.step"),
    ],
)
def test_a_name_that_is_there_twice(opened, torch, contents, name):
    with pytest.raises(ConversionError, match=f"model.pt: two things are called {name}"):
        opened(contents(torch.zeros(2), torch.ones(2)))


def test_a_dictionary_that_holds_itself(opened, torch):
    endless = {"a": torch.zeros(2)}
    endless["b"] = endless
    with pytest.raises(ConversionError, match=r"model.pt: its dictionaries are nested without end"):
        opened(endless)
    circle = [1]
    circle.append(circle)
    assert opened({"a": torch.zeros(2), "b": circle}).specs.keys() == {"a"}


class Wanted:
    """An object whose pickle refers to a global that weights do not need."""

    def __reduce__(self):
        return Path, ("x",)


def ran(text):
    raise AssertionError("code of a file ran")


def test_objects_beside_the_weights(opened, torch, monkeypatch):
    """Objects are read as inert placeholders: no class is needed, and no code of them runs."""
    monkeypatch.setattr(Wanted, "__reduce__", lambda self: (ran, ("x",)))
    others = {"args": argparse.Namespace(lr=1e-4, to=Path("x")), "x": Wanted(), "mean": np.ones(2)}
    file = opened({"w": torch.arange(3.0), "epoch": 3, **others})
    assert file.values.keys() == {"epoch", *others} and file.values["epoch"] == 3
    assert all(isinstance(file.values[name], torch_files.Placeholder) for name in others)
    np.testing.assert_array_equal(file.read("w"), [0, 1, 2])
    message = "model.pt: args is a argparse.Namespace with tensors in it, which have no names"
    with pytest.raises(ConversionError, match=message):
        opened({"w": torch.arange(3.0), "args": argparse.Namespace(mean=torch.zeros(3))})


def test_a_module_as_a_whole(opened, torch):
    with pytest.raises(ConversionError, match=r"torch.nn.\S+, a whole module: save its state_dict"):
        opened({"model": torch.nn.Linear(2, 2)})


def test_the_state_of_a_training_run(opened, torch):
    """What a trainer needs to go on is passed over, in whatever form it is, and that is said."""
    state = {
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
        "optimizer_states": [{"state": {0: torch.zeros(2)}}, torch.zeros(1)],
        "cuda_rng_state": torch.zeros(4, dtype=torch.uint8),
    }
    file = opened({"model": {"w": torch.zeros(2)}, "lr_scheduler": {"last_epoch": 3}, **state})
    assert file.specs.keys() == {"model.w"} and file.values == {"lr_scheduler.last_epoch": 3}
    said = (
        "not read: optimizer (1 tensors), optimizer_states (2 tensors), cuda_rng_state (1 tensors)"
    )
    assert file.notes == (said,)
    with pytest.raises(ConversionError, match=r"holds no weights but the state of a training run"):
        opened(state)
    with pytest.raises(ConversionError, match=r"shadow_params is a list .* a moving average"):
        opened({"decay": 0.999, "shadow_params": [torch.zeros(2)]})


def test_what_pytorch_says_is_no_advice(opened, torch, tmp_path, monkeypatch):
    """PyTorch's own message, on how to run the code, is not shown."""
    with pytest.raises(ConversionError) as error:
        opened({"a": collections.defaultdict(list, b=[1])})
    assert str(error.value).endswith(
        "without running code from it: it asks for builtins.list, collections.defaultdict; save "
        "its state_dict() alone"
    )
    assert error.value.__cause__ is None and error.value.__suppress_context__
    opened({"a": torch.zeros(2)})
    for raised, said in ((RuntimeError(), ""), (RuntimeError("disk gone\nmore"), ": disk gone")):

        def load(*_, error=raised, **__):
            raise error

        monkeypatch.setattr(torch, "load", load)
        with pytest.raises(ConversionError) as error:
            open_weights(tmp_path / "model.pt")
        assert str(error.value).endswith(f"without running code from it{said}")


def test_the_format_of_old_versions(opened, torch):
    with pytest.raises(ConversionError, match=r"had before 1\.6, .*; save it again with PyTorch"):
        opened({"a": torch.zeros(2)}, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("version", ["2.5.1", "2.9.1+cu128", "1.13.0", "unknown"])
def test_versions_that_files_can_make_run_code(opened, torch, tmp_path, monkeypatch, version):
    opened({"a": torch.zeros(2)})
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(ConversionError) as error:
        open_weights(tmp_path / "model.pt")
    assert f"PyTorch {version} can be made to run code" in str(error.value)
    assert "install 2.10 or newer" in str(error.value)


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0.0a0+gitabc"])
def test_versions_that_they_cannot(opened, torch, monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    assert opened({"a": torch.zeros(2)}).read("a").shape == (2,)


def stacked_file(opened, torch, count=12):
    numbers = torch.arange(count * 6.0).reshape(count, 2, 3)
    return opened({"mot": {str(i): x for i, x in enumerate(numbers)}}), numbers.numpy()


@pytest.mark.parametrize("kept", [1, 60, 2**30])
def test_a_file_that_is_read_from_several_threads(opened, torch, monkeypatch, kept):
    """It is mapped many times, by one thread at a time, and every tensor has its own numbers."""
    monkeypatch.setattr(torch_files, "KEPT_MAPPED", kept)
    file, numbers = stacked_file(opened, torch)
    load, mapping, most, times = torch_files._load, [], [], []

    def slow(path):
        mapping.append(1)
        most.append(len(mapping))
        times.append(1)
        time.sleep(0.002)
        try:
            return load(path)
        finally:
            mapping.pop()

    monkeypatch.setattr(torch_files, "_load", slow)
    start = threading.Barrier(6)

    def read(seed):
        order = np.random.default_rng(seed).permutation(len(numbers))
        start.wait()
        for i in order:
            np.testing.assert_array_equal(file.read(f"mot.{i}"), numbers[i])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(read, range(6)))
    assert max(most, default=0) <= 1
    # Two tensors of 24 bytes are 60 at most; that of the constructor stays for the first of these.
    assert len(times) == {1: 72, 60: 35, 2**30: 0}[kept]


def test_pieces_of_such_a_file(opened, torch, monkeypatch):
    monkeypatch.setattr(torch_files, "KEPT_MAPPED", 1)
    file, numbers = stacked_file(opened, torch)
    rules = [rule("mot.{i}", "w", "o i -> i o", layers=len(numbers))]
    found = [(piece.layer, piece.array) for piece in pieces(rules, file)]
    assert [layer for layer, _ in found] == list(range(len(numbers)))
    np.testing.assert_array_equal(np.stack([x for _, x in found]), np.swapaxes(numbers, 1, 2))


def test_files_that_change_while_they_are_read(opened, torch, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files, "KEPT_MAPPED", 1)
    file = opened({"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(4)})
    opened({"a": torch.zeros(2), "b": torch.zeros(5)})
    assert file.read("a").shape == (2,)
    for name in ("b", "c"):
        with pytest.raises(ConversionError, match=f"model.pt: has another {name} than before"):
            file.read(name)
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(2), "b": np.zeros(3)}, path)
    file = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ConversionError, match=r"model.safetensors: ends within b, and did not bef"):
        [file.read(name) for name in ("a", "b")]
    path.unlink()
    with pytest.raises(ConversionError, match=r"model.safetensors: a cannot be read: .*No such"):
        file.read("a")


@pytest.mark.parametrize("start", [b"PK", b"\x80\x02"])
def test_a_safetensors_file_is_told_by_more_than_two_bytes(tmp_path, start):
    """The length of a safetensors header can begin like a zip archive, or like a pickle."""
    path, numbers = tmp_path / "weights", np.arange(3, dtype=np.float32)
    length = int.from_bytes(start, "little")
    entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    header = json.dumps({"a": entry}).encode().ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + header + numbers.tobytes())
    assert path.read_bytes()[:2] == start
    np.testing.assert_array_equal(load_file(path)["a"], numbers)
    np.testing.assert_array_equal(open_weights(path).read("a"), numbers)


@pytest.mark.parametrize(
    "index",
    [
        b'{"weight_map": ["model.safetensors"]}',
        b'{"weight_map": {"a": 3}}',
        b'{"weight_map": {"a": null}}',
        b'{"weight_map": null}',
        b'{"weight_map": "a"}',
        b'{"metadata": {}}',
        b'["weight_map"]',
        b"null",
        b'{"weight_map": {"a": "\xff"}}',
        b"[" * 10**5,
    ],
)
def test_an_index_that_is_none(tmp_path, index):
    save_file({"a": np.zeros(3)}, tmp_path / "model.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(index)
    with pytest.raises(ConversionError, match=f"{path}: not an index of files of weights"):
        open_weights(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_file_that_may_not_be_read(tmp_path, monkeypatch, name):
    save_file({"a": np.zeros(3)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    path = tmp_path / name

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    monkeypatch.setattr(Path, "read_text", forbidden)
    with pytest.raises(ConversionError, match=rf"{path}: .*Permission denied"):
        open_weights(path if path.suffix == ".safetensors" else tmp_path)


def test_two_tensors_that_would_have_one_name():
    source = ArraySource({"old.a": np.zeros(2), "a": np.zeros(3)}, "file")
    with pytest.raises(ConversionError, match=r"file: both old\.a and a are a"):
        Renamed(source, lambda name: name.removeprefix("old."))


class Other(ArraySource):
    """A source whose specs are wrong."""

    def __init__(self, said: TensorSpec, array: np.ndarray):
        super().__init__({"a": array}, "file")
        self.specs = {"a": said}


@pytest.mark.parametrize(
    ("shape", "dtype"), [((3, 2), np.float32), ((2, 3), np.float16), ((6,), np.float32)]
)
def test_a_source_that_does_not_keep_its_word(shape, dtype):
    source = Other(TensorSpec(shape, np.dtype(dtype), "file"), np.zeros((2, 3), np.float32))
    with pytest.raises(ConversionError, match=r"file: a is float32 \(2, 3\), expected float"):
        read_checked(source, "a")
    like = {"a": jax.ShapeDtypeStruct(shape, dtype)}
    axes = " ".join("xyz"[: len(shape)])
    with pytest.raises(ConversionError, match=r"file: a is float32 \(2, 3\), expected float"):
        to_tree([rule("a", "a", f"{axes} -> {axes}")], source, like, "file")


def test_arrays_of_several_dtypes_make_no_tensor():
    from tests.weights.test_mapping import RULES, like

    mixed = like()
    mixed["stack"]["up"] = jax.ShapeDtypeStruct(mixed["stack"]["up"].shape, np.float16)
    message = r"file: block\.\{i\}\.fused would be of float16 and float32"
    with pytest.raises(ConversionError, match=message):
        ForeignView(RULES, mixed, lambda path, layer: None, "file")


def adapter(**changes):
    rng = np.random.default_rng(0)
    layer = {
        "x.base.weight": rng.normal(size=(6, 5)),
        "x.lora_A": rng.normal(size=(2, 5)),
        "x.lora_B": rng.normal(size=(6, 2)),
    }
    layer = {name: array.astype(np.float32) for name, array in layer.items()}
    return ArraySource({"other": np.zeros(3, np.float32)} | layer | changes, "file")


def test_adapters_of_several_ranks():
    """Each adapter is scaled by its own rank."""
    more = {f"y.{name[2:]}": array for name, array in adapter()._arrays.items() if name != "other"}
    more["y.lora_A"], more["y.lora_B"] = more["y.lora_A"][:1], more["y.lora_B"][:, :1]
    source = adapter(**more)
    found = merged(source, {"alpha": 4.0})
    assert found.ranks == {"x": 2, "y": 1}
    for layer, rank in found.ranks.items():
        base, a, b = (source.read(f"{layer}.{x}") for x in ("base.weight", "lora_A", "lora_B"))
        np.testing.assert_allclose(found.read(f"{layer}.weight"), base + 4 / rank * b @ a, 1e-6)
    with pytest.raises(ConversionError, match="given as 2, that of y is 1"):
        merged(source, {"alpha": 4.0, "rank": 2})


@pytest.mark.parametrize(
    "section",
    [
        lambda lora: {"model": {"flux2_lora_config": lora}},
        lambda lora: {"flux2_lora_config": lora},
        lambda lora: lora,
    ],
)
def test_a_rank_that_the_training_config_has_otherwise(section):
    assert merged(adapter(), section({"alpha": 4.0, "rank": 2})).ranks == {"x": 2}
    message = "file: the rank of its LoRA factors is given as 8, that of x is 2"
    with pytest.raises(ConversionError, match=message):
        merged(adapter(), section({"alpha": 4.0, "rank": 8}))


@pytest.mark.parametrize("alpha", ["four", [4], True, float("nan")])
def test_an_alpha_that_is_no_number(alpha):
    with pytest.raises(ConversionError, match="file: the alpha of its LoRA factors is"):
        merged(adapter(), {"alpha": alpha})


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.float64, np.bool_])
@pytest.mark.parametrize("name", ["x.lora_A", "x.lora_B"])
def test_factors_of_a_dtype_that_no_weight_has(name, dtype):
    changed = adapter()._arrays[name].astype(dtype)
    with pytest.raises(ConversionError, match=f"file: {name} is of {np.dtype(dtype)}, expected bf"):
        MergedLora(adapter(**{name: changed}), 4.0)


@pytest.mark.parametrize(
    "shapes",
    [((2,), (6, 2)), ((), (6, 2)), ((2, 5), (6,)), ((0, 5), (6, 0)), ((2, 5, 1), (6, 2))],
)
def test_factors_of_odd_shapes(shapes):
    a, b = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ConversionError, match=r"file: .*x"):
        merged(adapter(**{"x.lora_A": a, "x.lora_B": b}), {"alpha": 4.0})


def test_a_layer_with_two_weights():
    source = adapter(**{"x.weight": np.zeros((6, 5), np.float32)})
    with pytest.raises(ConversionError, match=r"file: has both x\.base\.weight and x\.weight"):
        MergedLora(source, 4.0)


def test_a_file_that_is_gone_before_it_is_read(opened, torch, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_files, "KEPT_MAPPED", 1)
    file = opened({"a": torch.zeros(2), "b": torch.zeros(3)})
    file.read("a")
    (tmp_path / "model.pt").unlink()
    with pytest.raises(ConversionError, match=r"model\.pt: PyTorch cannot read it .*No such file"):
        file.read("b")
