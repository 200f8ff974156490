"""Golden values of the layers of `medseg.core.norm`, several steps each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.core.norm import (
    AdaBatchNorm,
    BatchChannelNorm,
    CRMSNorm,
    EvoNormB0,
    EvoNormS0,
    LayerNormChannel,
    PowerNorm,
    RegionNorm,
    RMSNorm,
    UnifiedNorm,
    region_mask,
    task_ids,
)
from medseg.core.norm.power import scale_groups

ROOT = Path(__file__).resolve().parents[3]
METHODS = ("adab2n", "bcn", "evonorm", "power_norm", "region_norm", "rms_norm", "soft_attention", "unified_norm")
FILES = {
    f"{method}/{path.stem}": path
    for method in METHODS
    for folder in (ROOT.parent / "shared/golden", ROOT / "tests/golden")
    for path in sorted((folder / method).glob("*.npz"))
}


def of(prefix: str) -> list[str]:
    return [name for name in FILES if name.startswith(prefix)]


def read(name: str) -> dict[str, torch.Tensor]:
    with np.load(FILES[name]) as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file if file[key].dtype.kind != "U"}


def close(found: torch.Tensor, golden: torch.Tensor, what: str) -> None:
    single = golden.dtype == torch.float32
    rtol, atol = (1e-5, 1e-6) if single else (1e-9, 1e-11)
    torch.testing.assert_close(
        found.detach().reshape(golden.shape).to(golden.dtype),
        golden,
        rtol=rtol,
        atol=atol,
        msg=lambda m: f"{what}: {m}",
    )


def set_parameters(layer: torch.nn.Module, **values: torch.Tensor) -> torch.nn.Module:
    layer.double()
    with torch.no_grad():
        for name, value in values.items():
            tensor = getattr(layer, name)
            tensor.copy_(value.reshape(tensor.shape))
    return layer


def run_steps(layer, golden, *, states=(), grads=(("weight", "weight"), ("bias", "bias")), scale=None):
    """Run every stored step and compare outputs, gradients and states; then evaluation."""
    single = golden["x0"].dtype == torch.float32
    layer.float() if single else layer.double()
    layer.train()
    for step in range(sum(key[0] == "x" and key[1:].isdigit() for key in golden)):
        x = golden[f"x{step}"].clone().requires_grad_()
        layer.zero_grad()
        y = layer(x)
        close(y, golden[f"y{step}"], f"y{step}")
        y.backward(golden[f"g{step}"])
        close(x.grad, golden[f"gx{step}"], f"gx{step}")
        for ours, theirs in grads:
            if f"grad_{theirs}{step}" in golden:
                close(getattr(layer, ours).grad, golden[f"grad_{theirs}{step}"], f"grad {ours} {step}")
        for ours, theirs in states:
            if f"state_{theirs}{step}" in golden:
                found = getattr(layer, ours) * (1 if scale is None else scale.get(ours, 1))
                close(found, golden[f"state_{theirs}{step}"], f"state {ours} {step}")
    if "y_eval" in golden:
        layer.eval()
        x = golden["x0"].clone().requires_grad_()
        y = layer(x)
        close(y, golden["y_eval"], "y_eval")
        y.backward(golden["g0"])
        close(x.grad, golden["gx_eval"], "gx_eval")


@pytest.mark.parametrize("name", [n for n in of("power_norm/") if "group_scaling" not in n])
def test_power_norm(name):
    golden = read(name)
    layer = PowerNorm(golden["x0"].shape[1], warmup_iters=int(golden["warmup"]))
    set_parameters(layer, weight=golden["weight"], bias=golden["bias"])
    states = (("running_phi", "running_phi"), ("grad_stat", "ema_gz"))
    # The published state is the statistic divided by 1 - alpha_bwd.
    run_steps(layer, golden, states=states, scale={"grad_stat": 1 / (1 - layer.alpha_bwd)})


@pytest.mark.parametrize("name", of("power_norm/group_scaling"))
def test_group_scaling(name):
    golden = read(name)
    x = golden["x"].requires_grad_()
    y = scale_groups(x, int(golden["groups"]))
    close(y, golden["y"], "y")
    y.backward(golden["g"])
    close(x.grad, golden["gx"], "gx")


@pytest.mark.parametrize("name", of("unified_norm/"))
def test_unified_norm(name):
    golden = read(name)
    layer = UnifiedNorm(
        golden["x0"].shape[1],
        window=int(golden["window"]),
        warmup_iters=int(golden["warmup"]),
        outlier_filtration=bool(golden["outlier_filtration"]),
        init_buffers="zeros",
    )
    set_parameters(layer, weight=golden["weight"], bias=golden["bias"])
    start = {"window_forward": "buffer_x2_init", "window_backward": "buffer_gz_init", "running_var": "running_var_init"}
    set_parameters(layer, **{ours: golden[theirs] for ours, theirs in start.items() if theirs in golden})
    layer.num_batches.fill_(int(golden["start_iter"]))
    states = (("running_var", "running_var"), ("grad_stat", "ema_gz"), ("skipped_steps", "skip_counter"))
    run_steps(layer, golden, states=states)


@pytest.mark.parametrize("kind", ["layer", "rms", "crms"])
@pytest.mark.parametrize("name", [n for n in of("rms_norm/") if "conversion" not in n])
def test_norms_over_channels(name, kind):
    golden = read(name)
    layer = {"layer": LayerNormChannel, "rms": RMSNorm, "crms": CRMSNorm}[kind]
    for last in (False, True):
        x = golden["x"].clone().requires_grad_()
        y = layer(x.shape[1], eps=1e-5, affine=False, channels_last=last)(x.movedim(1, -1) if last else x)
        y = y.movedim(-1, 1) if last else y
        close(y, golden[f"y_{kind}"], "y")
        y.backward(golden["g"])
        close(x.grad, golden[f"gx_{kind}"], "gx")


@pytest.mark.parametrize("name", of("evonorm/"))
def test_evonorm(name):
    golden = read(name)
    channels = golden["x0"].shape[1]
    if "/b0" in name:
        layer = EvoNormB0(channels, eps=float(golden["eps"]), momentum=float(golden["momentum"]))
    else:
        layer = EvoNormS0(channels, num_groups=int(golden["groups"]), eps=float(golden["eps"]))
    set_parameters(layer, weight=golden["weight"], bias=golden["bias"], v=golden["v"])
    grads = (("weight", "weight"), ("bias", "bias"), ("v", "v"))
    run_steps(layer, golden, states=(("running_var", "running_var"),), grads=grads)


@pytest.mark.parametrize("name", of("bcn/bcn"))
def test_batch_channel_norm(name):
    golden = read(name)
    mode = "estimate" if "_est_" in name else "batch"
    layer = BatchChannelNorm(golden["x0"].shape[1], num_groups=int(golden["groups"]), mode=mode)
    values = {"weight": "bn_weight", "bias": "bn_bias", "group_weight": "group_weight", "group_bias": "group_bias"}
    set_parameters(layer, **{ours: golden[theirs] for ours, theirs in values.items()})
    grads = (
        ("weight", "pbn.weight"), ("bias", "pbn.bias"), ("group_weight", "weight"), ("group_bias", "bias"),
    )  # fmt: skip
    run_steps(layer, golden, states=(("running_mean", "running_mean"), ("running_var", "running_var")), grads=grads)
    if "running_mean" in golden:
        close(layer.running_mean, golden["running_mean"], "mean")
        close(layer.running_var, golden["running_var"], "variance")


@pytest.mark.parametrize("name", of("adab2n/"))
def test_adab2n(name):
    golden = read(name)
    layer = AdaBatchNorm(
        golden["x0"].shape[1], num_tasks=3, kappa=float(golden["kappa"]), momentum=0.1, renormalise=False
    )
    set_parameters(layer, weight=golden["weight"], bias=golden["bias"], task_logits=golden["task_weight"])
    layer.finished_tasks.fill_(int(golden["cur_tasks"]))
    for step in range(4):
        x = golden[f"x{step}"].requires_grad_()
        layer.zero_grad()
        with task_ids(golden["tasks"][step]):
            y = layer(x)
        close(y, golden[f"y{step}"], f"y{step}")
        penalty = layer.regularization
        ((y * golden[f"g{step}"]).sum() + float(golden["lambd"]) * penalty).backward()
        assert float(layer.rate) == pytest.approx(float(golden[f"eta{step}"]), rel=1e-12)
        close(x.grad, golden[f"gx{step}"], f"gx{step}")
        close(layer.task_logits.grad, golden[f"grad_task_weight{step}"], f"grad psi {step}")
        close(layer.weight.grad, golden[f"grad_weight{step}"], f"grad weight {step}")
        close(layer.running_mean, golden[f"state_running_mean{step}"], f"mean {step}")
        close(layer.running_var, golden[f"state_running_var{step}"], f"variance {step}")
    close(layer.eval()(golden["x0"]), golden["y_eval"], "y_eval")


@pytest.mark.parametrize("kind", ["code", "regionwise_affine"])
@pytest.mark.parametrize("name", of("region_norm/"))
def test_region_norm(name, kind):
    golden = read(name)
    affine = "code" if kind == "code" else "region"
    layer = RegionNorm(golden["x"].shape[1], stats="batch", affine=affine, scale_eps=True)
    weight = 1 + torch.stack([golden["bg_gamma"], golden["fg_gamma"]])
    set_parameters(layer, weight=weight, bias=torch.stack([golden["bg_beta"], golden["fg_beta"]]))
    x = golden["x"].requires_grad_()
    with region_mask(golden["mask"]):
        y = layer(x)
    close(y, golden[f"y_{kind}"], "y")
    y.backward(golden["g"])
    close(x.grad, golden[f"gx_{kind}"], "gx")
