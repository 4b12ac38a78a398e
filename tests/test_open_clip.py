"""The open_clip family: what holds without open_clip, and its cases in a process that has it."""

import os
import sys
from pathlib import Path

import bounded
import pytest
import torch
import vision_packages
import yaml

from feature_extraction.encoders.open_clip import OpenClipSource
from feature_extraction.encoders.packages import require
from feature_extraction.errors import InputError

CONF = Path(__file__).parent.parent / "conf" / "encoder"


def test_the_family_computes_what_open_clip_computes():
    vision_packages.run_cases("open_clip_cases.py")


def card(**other: object) -> dict[str, object]:
    spec = yaml.safe_load((CONF / "pathclip.yaml").read_text())["spec"]
    return spec | other


def test_a_missing_package_is_one_line_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    source = OpenClipSource(path="nowhere", spec=card(), model="ViT-B-16")
    with pytest.raises(InputError, match=r"needs open_clip.*pip install 'promptmil\[open_clip\]'") as caught:
        source.load(torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_a_package_that_lacks_another_one_names_that_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "leaning_package.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"leaning_package \(not_there_at_all is missing\): pip install 'promptmil"):
        require("leaning_package", extra="open_clip")


def test_a_torchvision_of_another_torch_is_one_line_with_the_repair():
    """The real wheel, in a process without the tolerance that the cases have."""
    if torch.version.cuda is not None:
        pytest.skip("this torch is a CUDA build, which the installed torchvision fits")
    code = "from feature_extraction.encoders.packages import require; require('open_clip', extra='open_clip')"
    environment = os.environ | {"PYTHONPATH": str(vision_packages.installed())}
    done = bounded.run([sys.executable, "-c", code], env=environment)
    assert "open_clip cannot be imported with torch" in done.stderr
    assert "torchvision --index-url https://download.pytorch.org/whl/cpu" in done.stderr


def test_a_card_without_both_spaces_is_refused():
    with pytest.raises(InputError, match=r"state both spec\.widths"):
        OpenClipSource(path="nowhere", spec=card(widths={"joint": 512}))
