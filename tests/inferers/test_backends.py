"""Tests of the back ends: the choice, its notes, and the answers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from medseg.inferers import openvino_backend
from medseg.inferers.backends import TorchBackend, autocast, select_backend, select_precision

CPU = torch.device("cpu")
has_openvino = importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not has_openvino, reason="needs openvino")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEG_CACHE", str(tmp_path / "cache"))


def make_network(channels: int = 1, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(channels, 4, 3, padding=1),
        nn.InstanceNorm3d(4, affine=True),
        nn.LeakyReLU(),
        nn.Conv3d(4, classes, 1),
    ).eval()


class Roots(nn.Module):
    """Needs an operation that OpenVINO has not got."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.linalg.eigvals(x[0, 0, :2, :2]).real.sum()


class Branch(nn.Module):
    """Takes a way that depends on values, which no export can follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x if x.sum() > 0 else 3 * x


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


def probabilities(backend, x):
    return backend(x).softmax(1)


def test_precision_auto_depends_on_the_device():
    assert select_precision("auto", CPU) == "fp32"
    assert select_precision("auto", torch.device("cuda")) == "fp16"
    assert select_precision("bf16", CPU) == "bf16"


def test_a_precision_that_is_none_or_has_no_units_is_an_error():
    with pytest.raises(ValueError, match="precision must be auto, fp32"):
        select_precision("fp8", CPU)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on a CPU use auto, fp32 or bf16"):
        select_backend(make_network(), (1, 8, 8, 8), device=CPU, precision="fp16")


def test_autocast_changes_the_arithmetic():
    layer = nn.Linear(2, 2)
    with autocast(CPU, "bf16"):
        assert layer(torch.zeros(1, 2)).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert layer(torch.zeros(1, 2)).dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_torch_gives_float32_logits_in_any_precision(precision):
    backend = select_backend(make_network(), None, device=CPU, engine="torch", precision=precision)
    answer = backend(torch.zeros(2, 1, 8, 8, 8))
    assert (backend.name, backend.precision) == ("torch", precision)
    assert (answer.dtype, answer.shape) == (torch.float32, (2, 3, 8, 8, 8))


def test_a_network_that_returns_no_tensor_is_an_error():
    with pytest.raises(TypeError, match="returned a tuple, expected one tensor"):
        TorchBackend(Pair())(torch.zeros(1, 1, 4, 4))


def test_an_unknown_engine_is_an_error():
    with pytest.raises(ValueError, match="engine must be auto, torch or openvino, got 'onnx'"):
        select_backend(make_network(), None, device=CPU, engine="onnx")  # type: ignore[arg-type]


def test_openvino_is_for_cpus():
    with pytest.raises(ValueError, match="engine openvino runs on the CPU, but the device is cuda:0"):
        select_backend(make_network(), None, device=torch.device("cuda:0"), engine="openvino")


def test_without_openvino_auto_is_torch_and_asking_for_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    backend = select_backend(make_network(), None, device=CPU)
    assert backend.name == "torch"
    assert "pip install openvino" in backend.notes[0]
    with pytest.raises(ModuleNotFoundError, match="pip install openvino"):
        select_backend(make_network(), None, device=CPU, engine="openvino")


@needs_openvino
def test_openvino_gives_the_probabilities_of_torch_and_leaves_the_network_alone():
    network = make_network(channels=2, classes=14)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.randn(3, 2, 8, 12, 16)
    with torch.inference_mode():
        backend = select_backend(network, (2, 8, 12, 16), device=CPU, precision="fp32")
        first, second = probabilities(backend, x), probabilities(backend, 2 * x)
        assert (backend.name, backend.precision, backend.notes) == ("openvino", "fp32", ())
        torch.testing.assert_close(first, network(x).softmax(1), atol=1e-5, rtol=0)
        torch.testing.assert_close(second, network(2 * x).softmax(1), atol=1e-5, rtol=0)
    assert isinstance(network[1], nn.InstanceNorm3d)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@needs_openvino
def test_the_first_call_fixes_the_window_where_it_was_unknown_and_other_shapes_run_in_torch():
    network = make_network()
    backend = select_backend(network, None, device=CPU, precision="fp32")
    for size in (8, 12):
        x = torch.randn(1, 1, size, size, size)
        torch.testing.assert_close(backend(x), network(x).detach(), atol=1e-4, rtol=1e-4)
    assert backend.name == "openvino"


@needs_openvino
@pytest.mark.parametrize(
    ("network", "engine", "reason"),
    [
        (Roots(), "auto", "No conversion rule found for operations: aten.linalg_eig"),
        (Branch(), "openvino", "GuardOnDataDependentSymNode"),
    ],
)
def test_a_network_that_cannot_be_converted_runs_in_torch_with_one_note_and_no_noise(network, engine, reason, capfd):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backend = select_backend(network, (1, 4, 4), device=CPU, engine=engine)
    assert (backend.name, backend.precision) == ("torch", "fp32")
    assert len(backend.notes) == 1
    assert "OpenVINO cannot run the network, PyTorch does, more slowly" in backend.notes[0]
    assert reason in backend.notes[0]
    assert backend(torch.ones(1, 1, 4, 4)).shape == (1, 1, 4, 4)
    assert [str(w.message) for w in caught] == []
    assert capfd.readouterr() == ("", "")


@needs_openvino
def test_a_conversion_that_changes_the_answer_is_not_used(monkeypatch):
    monkeypatch.setattr(openvino_backend, "convert", wrong_convert)
    backend = select_backend(make_network(), (1, 8, 8, 8), device=CPU, precision="fp32")
    assert backend.name == "torch"
    assert "probabilities differ by up to" in backend.notes[0]


def wrong_convert(network, window_shape, folder):
    from medseg.inferers.openvino_conversion import convert

    other = make_network()
    with torch.no_grad():
        other[3].weight.mul_(1.5)
    convert(other, window_shape, folder)


@needs_openvino
def test_a_network_is_converted_once_and_again_when_its_entry_is_damaged(tmp_path, monkeypatch):
    converted = []

    def counting_convert(network, window_shape, folder):
        converted.append(tuple(window_shape))
        original(network, window_shape, folder)

    original = openvino_backend.convert
    monkeypatch.setattr(openvino_backend, "convert", counting_convert)
    x = torch.randn(1, 1, 8, 8, 8)
    first, second = (select_backend(make_network(), (1, 8, 8, 8), device=CPU, precision="fp32") for _ in range(2))
    assert converted == [(1, 8, 8, 8)]
    assert torch.equal(first(x), second(x))
    (entry,) = (tmp_path / "cache" / "networks").iterdir()
    (entry / "model.bin").write_bytes(b"")
    third = select_backend(make_network(), (1, 8, 8, 8), device=CPU, precision="fp32")
    assert converted == [(1, 8, 8, 8)] * 2
    assert torch.equal(first(x), third(x))
    assert third.notes == ()


@needs_openvino
def test_a_conversion_that_failed_is_not_tried_again(monkeypatch):
    first = select_backend(Branch(), (1, 4, 4), device=CPU)
    monkeypatch.setattr(openvino_backend, "convert", lambda *_: pytest.fail("converted again"))
    second = select_backend(Branch(), (1, 4, 4), device=CPU)
    assert second.name == "torch"
    assert second.notes == first.notes


@needs_openvino
def test_a_conversion_is_announced(caplog):
    with caplog.at_level("INFO", logger="medseg"):
        select_backend(make_network(), (1, 8, 8, 8), device=CPU)
        select_backend(make_network(), (1, 8, 8, 8), device=CPU)
    assert [r.getMessage() for r in caplog.records if r.name.startswith("medseg")] == [
        "converting the network for OpenVINO, once for windows of 8x8x8"
    ]


@needs_openvino
def test_a_cache_that_cannot_be_written_costs_a_note_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MEDSEG_CACHE", str(tmp_path / "file"))
    network, x = make_network(), torch.randn(1, 1, 8, 8, 8)
    backend = select_backend(network, (1, 8, 8, 8), device=CPU, precision="fp32")
    assert backend.name == "openvino"
    assert len(backend.notes) == 1
    assert "every run converts it again" in backend.notes[0]
    assert "set MEDSEG_CACHE" in backend.notes[0]
    torch.testing.assert_close(backend(x), network(x).detach(), atol=1e-5, rtol=1e-5)


@needs_openvino
@pytest.mark.slow
def test_processes_that_convert_at_once_make_one_entry(tmp_path):
    code = (
        "import sys\n"
        "from tests.inferers.test_backends import make_network, select_backend\n"
        "import openvino\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "backend = select_backend(make_network(), (1, 8, 8, 8), device='cpu', precision='fp32')\n"
        "print(backend.name, backend.notes)\n"
    )
    start = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(start, **pipes) for _ in range(2)]
    assert [p.stdout.readline() for p in processes] == ["ready\n"] * 2
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [p.communicate() for p in processes] == [("openvino ()\n", "")] * 2
    assert len(list((tmp_path / "cache" / "networks").iterdir())) == 1


@needs_openvino
def test_bf16_without_units_is_refused_or_noted(monkeypatch):
    monkeypatch.setattr(openvino_backend, "has_bf16_units", lambda: False)
    with pytest.raises(ValueError, match="use precision fp32, or engine torch"):
        select_backend(make_network(), (1, 8, 8, 8), device=CPU, engine="openvino", precision="bf16")
    backend = select_backend(make_network(), (1, 8, 8, 8), device=CPU, precision="bf16")
    assert (backend.name, backend.precision) == ("torch", "bf16")
    assert "no bf16 units" in backend.notes[0]


@needs_openvino
class NamedTwice(nn.Module):
    """Calls a norm by the second of its two names, as nnU-Net's blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm3d(2, affine=True)
        self.all_modules = nn.Sequential(nn.Conv3d(1, 2, 1), self.norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.all_modules(x)


def test_a_norm_with_two_names_is_replaced_under_both():
    from medseg.inferers.openvino_conversion import with_two_stage_norms

    network = with_two_stage_norms(NamedTwice())
    assert not any(isinstance(m, nn.InstanceNorm3d) for m in network.modules())


@pytest.mark.parametrize(
    "norm",
    [
        nn.InstanceNorm3d(4),
        nn.InstanceNorm3d(4, affine=True, eps=1e-3),
        nn.InstanceNorm3d(4, affine=True, track_running_stats=True),
        nn.BatchNorm3d(4),
        nn.GroupNorm(2, 4),
    ],
    ids=lambda norm: str(norm)[:60],
)
def test_norms_in_3d_give_the_answer_of_torch(norm):
    check_norm(nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), norm), (1, 6, 7, 8))


@needs_openvino
@pytest.mark.parametrize("affine", [False, True])
def test_norms_in_2d_give_the_answer_of_torch(affine):
    check_norm(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=affine)), (1, 20, 12))


def check_norm(network, shape):
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    network.eval()
    x = torch.randn(2, *shape) * 3 + 5
    backend = select_backend(network, shape, device=CPU, engine="openvino", precision="fp32")
    assert backend.name == "openvino"
    torch.testing.assert_close(backend(x), network(x).detach(), atol=1e-5, rtol=1e-5)


@needs_openvino
@pytest.mark.slow
def test_fp32_probabilities_are_within_1e_4_of_torch_on_a_large_window():
    check_contract(size=96, filters=[32, 64, 128, 256, 320])


@needs_openvino
def test_fp32_probabilities_are_within_1e_4_of_torch():
    check_contract(size=32, filters=[16, 32, 64])


def check_contract(size: int, filters: list[int]) -> None:
    from monai.networks.nets import DynUNet

    torch.manual_seed(0)
    levels = len(filters)
    network = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=14,
        kernel_size=[3] * levels,
        strides=[1] + [2] * (levels - 1),
        upsample_kernel_size=[2] * (levels - 1),
        filters=filters,
        norm_name=("INSTANCE", {"affine": True}),
    ).eval()
    x = torch.randn(1, 1, size, size, size)
    backend = select_backend(network, (1, size, size, size), device=CPU, engine="openvino", precision="fp32")
    assert (backend.name, backend.precision, backend.notes) == ("openvino", "fp32", ())
    with torch.inference_mode():
        difference = (probabilities(backend, x) - network(x).softmax(1)).abs().max()
    assert difference <= 1e-4
