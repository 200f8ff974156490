"""The bundles in configs/ pass the project's own check, MONAI's, and can be exported."""

from __future__ import annotations

from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigParser

from medseg.bundles import Bundle, check_bundle
from medseg.bundles.trial import fitting_size

SHIPPED = sorted(p for p in (Path(__file__).parents[2] / "configs").iterdir() if p.is_dir())
shipped = pytest.mark.parametrize("bundle", SHIPPED, ids=lambda path: path.name)


@shipped
def test_a_shipped_bundle_has_no_findings(bundle):
    assert check_bundle(bundle) == []


@shipped
def test_monai_finds_inputs_and_outputs_as_declared(bundle):
    loaded = Bundle.load(bundle)
    shape = loaded.metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    size = fitting_size(shape)[1]
    config = str(loaded.config_path("inference"))
    meta = str(loaded.config_path("metadata"))
    monai.bundle.verify_net_in_out(
        "network_def", meta_file=meta, config_file=config, device="cpu", bundle_root=str(bundle), **size
    )


@shipped
def test_the_network_can_be_exported_and_answers_the_same(bundle):
    loaded = Bundle.load(bundle)
    parser = ConfigParser()
    parser.read_config(str(loaded.config_path("inference")))
    parser["bundle_root"] = str(bundle)
    network = parser.get_parsed_content("network_def").eval()
    shape, _ = fitting_size(loaded.metadata["network_data_format"]["inputs"]["image"]["spatial_shape"])
    x = torch.rand(1, len(loaded.input_channels), *shape, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(network, (x,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x), network(x), atol=1e-5, rtol=1e-4)
