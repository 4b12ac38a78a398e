"""`promptmil doctor`: what works on this machine, and what the asked-for run lacks."""

import fcntl
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from feature_extraction.claims import NO_LOCKS
from feature_extraction.files import publish_json
from mil.commands.doctor_encoder import encoder_findings
from mil.commands.findings import Finding

FREE_GIB = 5.0
OPTIONAL = ("transformers", "open-clip-torch", "timm", "ray", "onnxruntime")


def run(config: DictConfig) -> int:
    """Look at everything; exit code 1 if the asked-for run cannot work."""
    out = Path(config.out or ".")
    checks: list[Callable[[], Finding]] = [
        _packages,
        _owner_of_mil,
        _openslide,
        _torchvision,
        _device,
    ]
    findings = [check() for check in checks] + encoder_findings(config) + [_folder(out), _locks(out)]
    table = Table("", "what", "found", box=None)
    for finding in findings:
        table.add_row("ok" if finding.is_ok else "NO", finding.name, escape(finding.text))
    Console(stderr=True).print(table)
    is_ok = all(finding.is_ok for finding in findings)
    if is_ok and config.out is not None:
        lines = [{"name": f.name, "is_ok": f.is_ok, "text": f.text} for f in findings]
        publish_json(out / "summary.json", {"command": "doctor", "findings": lines})
    return 0 if is_ok else 1


def _packages() -> Finding:
    names = ("promptmil", "torch", "lightning", "h5py", "openslide-python", "hydra-core", *OPTIONAL)
    found = {name: _version(name) for name in names}
    text = ", ".join(f"{name} {version or 'not installed'}" for name, version in found.items())
    return Finding(name="packages", is_ok=all(found[name] for name in names if name not in OPTIONAL), text=text)


def _owner_of_mil() -> Finding:
    """Another distribution of the name would have overwritten parts of ours."""
    owners = set(importlib.metadata.packages_distributions().get("mil", [])) - {"promptmil"}
    text = f"also installed by {', '.join(owners)}: pip uninstall it, then reinstall promptmil" if owners else "ours"
    return Finding(name="module mil", is_ok=not owners, text=text)


def _openslide() -> Finding:
    try:
        from feature_extraction.slide import library_version

        return Finding(name="OpenSlide", is_ok=True, text=library_version())
    except (ImportError, OSError) as error:
        return Finding(name="OpenSlide", is_ok=False, text=f"{error}; pip install openslide-python openslide-bin")


def _torchvision() -> Finding:
    """A torchvision built for another torch breaks lightning, torchmetrics, timm and open_clip at their import."""
    if importlib.util.find_spec("torchvision") is None:
        return Finding(name="torchvision", is_ok=True, text="not installed, not needed")
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        remedy = "does not fit this torch; pip uninstall torchvision, or install the pair from one index"
        return Finding(name="torchvision", is_ok=False, text=f"{str(error).splitlines()[0]}: {remedy}")
    return Finding(name="torchvision", is_ok=True, text=_version("torchvision") or "")


def _device() -> Finding:
    if torch.cuda.is_available():
        return Finding(name="device", is_ok=True, text=f"CUDA: {torch.cuda.get_device_name(0)}")
    return Finding(name="device", is_ok=True, text=f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads")


def _folder(out: Path) -> Finding:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out):
            free = shutil.disk_usage(out).free / 2**30
    except OSError as error:
        return Finding(
            name="out", is_ok=False, text=f"{out}: cannot be written: {error.strerror}; choose another out=…"
        )
    return Finding(name="out", is_ok=free > FREE_GIB, text=f"{free:.0f} GiB free (wants more than {FREE_GIB:.0f})")


def _locks(out: Path) -> Finding:
    """Two workers never do a slide twice only where the file system has locks."""
    try:
        with tempfile.NamedTemporaryFile(dir=out) as stream:
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        text = f"flock: {error.strerror}; workers share by leases, a dead one's slide is free after a minute"
        return Finding(name="locks", is_ok=error.errno in NO_LOCKS, text=text)
    return Finding(name="locks", is_ok=True, text="flock works")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
