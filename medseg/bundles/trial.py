"""Run a bundle on synthetic data: properties, weights, network shapes, and one volume from file to mask."""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg.bundles.bundle import Bundle
from medseg.bundles.finding import Finding

# Deep networks want more than a few voxels at their coarsest level.
_SMALLEST = 32
_ANY_SIZE = 33
_SHAPE = (30, 34, 26)
_CASES = 6
_SKIP_INITIALIZE = "no_such_id"


def try_bundle(bundle: Bundle, *, dry_run: bool = True) -> list[Finding]:
    """Run the checks that need torch and MONAI.

    Args:
        bundle: the bundle; its code is executed, its folder is not written to.
        dry_run: also segment a synthetic volume.

    Returns:
        What was found.

    Example:
        >>> try_bundle(Bundle.load("hippocampus_segmentation"))  # doctest: +SKIP
        []
    """
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="medseg_check_") as folder, _quiet():
        data = _write_dataset(Path(folder) / "data", bundle)
        outputs = Path(folder) / "outputs"
        for kind, workflow in (("inference", "infer"), ("train", "train")):
            if (bundle.path / "configs" / f"{kind}.json").is_file():
                where = f"configs/{kind}.json"
                findings += _guarded(
                    where, "properties", lambda k=kind, w=workflow: _properties(bundle, k, w, data, outputs)
                )
        if (bundle.path / "configs" / "inference.json").is_file():
            findings += _guarded("configs/inference.json", "network", lambda: _network(bundle, data, dry_run))
    return findings


def _guarded(where: str, what: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Findings of one check; code of a bundle may raise anything, which is a finding too."""
    findings: list[Finding] = []
    try:
        findings.extend(check())
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        cause = error.__cause__
        if cause is not None:
            text += f" (from {type(cause).__name__}: {' '.join(str(cause).split())})"
        findings.append(Finding("error", f"{where}: {what}", f"could not be built or run: {text}"))
    return findings


def _properties(bundle: Bundle, kind: str, workflow_type: str, data: Path, outputs: Path) -> Iterator[Finding]:
    from monai.bundle import ConfigWorkflow

    path = bundle.config_path(kind)
    declared = json.loads(path.read_text(encoding="utf-8"))
    overrides = {"bundle_root": str(bundle.path), "dataset_dir": str(data), "output_dir": str(outputs)}
    overrides |= {"device": "$torch.device('cpu')"}
    workflow = ConfigWorkflow(
        config_file=str(path),
        workflow_type=workflow_type,
        logging_file=False,
        # Seeds and process groups are none of a check's business.
        init_id=_SKIP_INITIALIZE,
        **{key: value for key, value in overrides.items() if key in declared},
    )
    workflow.initialize()
    for name in workflow.check_properties() or []:
        where = f"configs/{kind}.json"
        yield Finding(
            "error", where, f"the {workflow_type} property {name!r} is missing or has another id than MONAI's"
        )
    if "run" not in declared:
        yield Finding("error", f"configs/{kind}.json", "run is missing; nothing would happen when the config is run")


def _network(bundle: Bundle, data: Path, dry_run: bool) -> Iterator[Finding]:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(bundle.config_path("inference")))
    for key, value in (("bundle_root", str(bundle.path)), ("dataset_dir", str(data))):
        parser[key] = value
    parser["device"] = "$torch.device('cpu')"
    network = parser.get_parsed_content("network_def").eval()
    yield from _guarded("models/model.pt", "weights", lambda: _weights(bundle, network))
    yield from _guarded("configs/metadata.json", "network in and out", lambda: _shapes(bundle, network))
    if dry_run:
        yield from _guarded("configs/inference.json", "dry run", lambda: _dry_run(bundle, parser, network, data))


def _weights(bundle: Bundle, network: Any) -> Iterator[Finding]:
    import torch

    if not bundle.weights_path.is_file():
        return
    where = "models/model.pt"
    state = torch.load(bundle.weights_path, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        got = sorted(state)[:5] if isinstance(state, Mapping) else type(state).__name__
        message = f"must be a flat state dict of tensors, got {got}; save network.state_dict() alone"
        yield Finding("error", where, message)
        return
    network.load_state_dict(state)
    if not all(bool(torch.isfinite(v).all()) for v in state.values() if v.is_floating_point()):
        yield Finding("error", where, "holds weights that are not finite; take an earlier checkpoint")


def _shapes(bundle: Bundle, network: Any) -> Iterator[Finding]:
    import torch

    formats = bundle.metadata["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    where = "configs/metadata.json: network_data_format.outputs.pred"
    size, values = fitting_size(image["spatial_shape"])
    dtype = getattr(torch, image["dtype"])
    with torch.inference_mode():
        output = network(torch.rand((1, image["num_channels"], *size), dtype=dtype))
    if not isinstance(output, torch.Tensor):
        yield Finding("error", where, f"the network returns {type(output).__name__} in evaluation, expected one tensor")
        return
    if output.shape[1] != pred["num_channels"]:
        yield Finding("error", where, f"num_channels is {pred['num_channels']}, the network gives {output.shape[1]}")
    declared = [None if s == "*" else evaluate_size(s, **values) for s in pred["spatial_shape"]]
    if not _matches(declared, output.shape[2:]):
        shape = f"{tuple(output.shape[2:])} for an input of {size}"
        yield Finding("error", where, f"spatial_shape {pred['spatial_shape']} does not hold: the network gives {shape}")
    if not bool(torch.isfinite(output).all()):
        yield Finding("error", where, "the network gives values that are not finite for an input in [0, 1]")


def _dry_run(bundle: Bundle, parser: Any, network: Any, data: Path) -> Iterator[Finding]:
    import nibabel
    import torch
    from monai.transforms import SaveImaged

    where = "configs/inference.json: postprocessing"
    files = [str(p) for p in sorted((data / "imagesTs").iterdir())]
    grid: Any = nibabel.load(files[0])
    sample = parser.get_parsed_content("preprocessing")({"image": files if len(files) > 1 else files[0]})
    with torch.inference_mode():
        logits = parser.get_parsed_content("inferer")(sample["image"].as_tensor()[None], network)
    sample["pred"] = logits[0]
    chain = parser.get_parsed_content("postprocessing").flatten().transforms
    for transform in (t for t in chain if not isinstance(t, SaveImaged)):
        sample = transform(sample)
    pred = sample["pred"]
    if tuple(pred.shape[1:]) != grid.shape:
        message = f"the mask has the shape {tuple(pred.shape[1:])}, the input {grid.shape}; add Invertd"
        yield Finding("error", where, message)
        return
    affine = getattr(pred, "affine", None)
    if affine is not None and abs(affine.numpy() - grid.affine).max() > 1e-3:
        yield Finding("error", where, "the mask does not lie on the input's grid: its affine differs; check Invertd")
    values = torch.unique(torch.as_tensor(pred)).tolist()
    count = int(bundle.metadata["network_data_format"]["outputs"]["pred"]["num_channels"])
    if any(v != int(v) or not 0 <= v <= max(count - 1, 1) for v in values):
        message = f"the mask must hold whole numbers from 0 to {count - 1}, got {values[:5]}; add AsDiscreted"
        yield Finding("error", where, message)


def fitting_size(shape: Sequence[int | str]) -> tuple[tuple[int, ...], dict[str, int]]:
    """A size that a `spatial_shape` of the metadata allows, large enough for deep networks.

    Args:
        shape: whole numbers, `"*"` (any size), or expressions in `n` and `p` such as `"8*n"` and `"2**p*n"`.

    Returns:
        The size, and the values of `n` and `p` that gave it.

    Raises:
        ValueError: an entry is none of these.

    Example:
        >>> fitting_size(["8*n", "*", 16])
        ((32, 33, 16), {'n': 4, 'p': 1})
    """
    free = [s for s in shape if not str(s).isdecimal() and s != "*"]
    choices = [{"n": n, "p": p} for p in range(1, 6) for n in range(1, _SMALLEST + 1)]
    large = [v for v in choices if all(evaluate_size(s, **v) >= _SMALLEST for s in free)]
    if not large:
        raise ValueError(f"spatial_shape {list(shape)} gives no size of {_SMALLEST} or more for n up to {_SMALLEST}")
    values = min(large, key=lambda v: sum(evaluate_size(s, **v) for s in free))
    return tuple(evaluate_size(s, **values) for s in shape), values


def evaluate_size(entry: int | str, *, n: int, p: int) -> int:
    """One entry of a `spatial_shape` for given `n` and `p`; `"*"` gives an odd size.

    Example:
        >>> evaluate_size("2**p*n", n=3, p=4)
        48
    """
    if entry == "*":
        return _ANY_SIZE
    try:
        tree = ast.parse(str(entry), mode="eval").body
    except SyntaxError:
        tree = ast.Constant(None)
    return _evaluate(tree, {"n": n, "p": p}, str(entry))


def _evaluate(node: ast.AST, values: Mapping[str, int], entry: str) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name) and node.id in values:
        return values[node.id]
    if isinstance(node, ast.BinOp):
        left, right = (_evaluate(side, values, entry) for side in (node.left, node.right))
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.Pow) and 0 <= right <= 16 and abs(left) <= 16:
            return left**right
    raise ValueError(f"spatial_shape entry {entry!r} must be a number, '*', or an expression in n and p such as '8*n'")


def _matches(declared: Sequence[int | None], got: Sequence[int]) -> bool:
    return len(declared) == len(got) and all(d is None or d == g for d, g in zip(declared, got, strict=True))


def _write_dataset(root: Path, bundle: Bundle) -> Path:
    """Oblique volumes with random labels in a layout that both nnU-Net's and the Decathlon's readers understand."""
    import nibabel
    import numpy as np

    random = np.random.default_rng(0)
    channels, classes = max(len(bundle.input_channels), 1), len(bundle.labels) + 1
    angle = np.deg2rad(20.0)
    affine = np.eye(4)
    affine[:2, :2] = [[-np.cos(angle), -np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    affine[:3, :3] *= [1.0, 1.1, 1.4]
    affine[:3, 3] = (12.5, -30.25, 7.0)
    names = [f"case_{number:02d}" for number in range(_CASES)]
    for folder, wanted in (("imagesTr", names), ("imagesTs", names[:1]), ("labelsTr", names)):
        (root / folder).mkdir(parents=True)
        for name in wanted:
            endings = [""] if folder == "labelsTr" else [f"_{c:04d}" for c in range(channels)]
            for ending in endings:
                array = random.normal(100.0, 20.0, _SHAPE).astype(np.float32)
                if folder == "labelsTr":
                    array = random.integers(0, classes, _SHAPE).astype(np.uint8)
                nibabel.save(nibabel.Nifti1Image(array, affine), root / folder / f"{name}{ending}.nii.gz")
    _describe(root, names, channels, bundle)
    return root


def _describe(root: Path, names: Sequence[str], channels: int, bundle: Bundle) -> None:
    pairs = []
    for name in names:
        images = [f"./imagesTr/{name}_{c:04d}.nii.gz" for c in range(channels)]
        pairs.append({"image": images if channels > 1 else images[0], "label": f"./labelsTr/{name}.nii.gz"})
    content = {
        "channel_names": {str(c): f"channel{c}" for c in range(channels)},
        "labels": {"background": 0} | {name: value for value, name in bundle.labels.items()},
        "file_ending": ".nii.gz",
        "numTraining": len(names),
        "training": pairs,
        "validation": pairs[:1],
        "test": [p["image"] for p in pairs[:1]],
    }
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep stdout for results: what libraries log below errors is dropped, what they print goes to stderr."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
