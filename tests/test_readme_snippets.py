"""Every snippet of the README runs as it stands."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

README = Path(__file__).resolve().parents[1] / "README.md"
SNIPPETS = dict(
    re.findall(r"^<!-- snippet: (.+?) -->\n```python\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
)


def run(name: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": f"snippet_{name}"}
    exec(compile(SNIPPETS[name], f"README.md, {name}", "exec"), names)
    return names


def test_every_python_block_is_a_snippet_that_is_run_here():
    assert sorted(SNIPPETS) == ["Lightning", "MONAI", "PyTorch", "nnU-Net"]
    assert README.read_text("utf-8").count("```python") == len(SNIPPETS)


def test_the_loop_in_pytorch_lowers_the_loss():
    torch.manual_seed(0)
    names = run("PyTorch")
    with torch.no_grad():
        assert names["loss_function"](names["network"](names["image"]), names["label"]) < names["loss"]


def test_the_trainer_of_monai_ends_after_its_epochs():
    trainer = run("MONAI")["trainer"]
    assert trainer.state.epoch == 2
    assert trainer.state.output[0]["loss"] > 0


@pytest.mark.skipif(find_spec("lightning") is None, reason="needs Lightning: pip install lightning")
@pytest.mark.filterwarnings("ignore")
def test_the_module_of_lightning_trains(tmp_path):
    import lightning

    torch.manual_seed(0)
    module = run("Lightning")["Segmentation"]()
    before = [parameter.clone() for parameter in module.parameters()]
    item = {"image": torch.rand(1, 16, 16, 16), "label": torch.randint(2, (1, 16, 16, 16))}
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([item, item]))
    assert not any(torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


def test_the_trainer_of_nnunet_builds_a_loss_for_its_lists(monkeypatch):
    if find_spec("nnunetv2") is None:
        # The part of nnU-Net's class that the snippet touches.
        for name in ("", ".training", ".training.nnUNetTrainer", ".training.nnUNetTrainer.nnUNetTrainer"):
            monkeypatch.setitem(sys.modules, f"nnunetv2{name}", ModuleType(f"nnunetv2{name}"))
        kind = type("nnUNetTrainer", (), {"_get_deep_supervision_scales": lambda self: [[1] * 3, [0.5] * 3]})
        sys.modules["nnunetv2.training.nnUNetTrainer.nnUNetTrainer"].nnUNetTrainer = kind
    kind = run("nnU-Net")["nnUNetTrainerMine"]
    trainer = object.__new__(kind)
    monkeypatch.setattr(kind, "_get_deep_supervision_scales", lambda self: [[1] * 3, [0.5] * 3], raising=False)
    outputs = [torch.zeros(1, 2, n, n, n, requires_grad=True) for n in (8, 4)]
    targets = [torch.randint(2, (1, 1, n, n, n), dtype=torch.int16) for n in (8, 4)]
    trainer._build_loss()(outputs, targets).backward()
    assert outputs[0].grad is not None
