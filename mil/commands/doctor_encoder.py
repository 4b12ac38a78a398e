"""What `promptmil doctor` finds out about the encoder of the asked-for run: facts, licence, hub, weights."""

import importlib.util
import os

import torch
from omegaconf import DictConfig

from feature_extraction.commands.settings import encoder_source
from feature_extraction.encoder import EncoderSource, EncoderSpec
from feature_extraction.errors import PromptmilError
from feature_extraction.files import sha256_of_file
from feature_extraction.licences import licence_line
from mil.commands.findings import Finding


def encoder_findings(config: DictConfig) -> list[Finding]:
    """Look at the encoder; what cannot be looked at because of an earlier fault is left out."""
    try:
        source = encoder_source(config)
        spec = source.spec
    except PromptmilError as error:
        return [Finding(name="encoder", is_ok=False, text=str(error))]
    return [_facts(spec), _licence(spec), _hub(source, spec), *_weights(source, spec)]


def _facts(spec: EncoderSpec) -> Finding:
    widths = ", ".join(f"{space} {width}" for space, width in spec.widths.items())
    text = "with text" if spec.has_text else "no text tower: prompts cannot be used with it"
    return Finding(
        name="encoder", is_ok=True, text=f"{spec.name}: {widths}; {spec.input_px} px at {spec.tile_mpp} µm; {text}"
    )


def _licence(spec: EncoderSpec) -> Finding:
    return Finding(name="licence", is_ok=True, text=licence_line(spec.name, spec.licence, spec.licence_ancestry))


def _hub(source: EncoderSource, spec: EncoderSpec) -> Finding:
    """Whether the hub would be asked, and whether it would answer."""
    if source.is_local():
        return Finding(name="hub", is_ok=True, text="not needed, the weights are on this machine")
    if importlib.util.find_spec("huggingface_hub") is None:
        return Finding(name="hub", is_ok=False, text="huggingface_hub is not installed: pip install 'promptmil[hf]'")
    import huggingface_hub

    token = "a token is there" if huggingface_hub.get_token() else "no token"
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
        return Finding(name="hub", is_ok=True, text=f"offline (HF_HUB_OFFLINE): only its cache is searched; {token}")
    if spec.is_gated and token == "no token":  # noqa: S105 - words, not a token
        remedy = f"accept the terms of {spec.source} in a browser, then `hf auth login` or set HF_TOKEN"
        return Finding(name="hub", is_ok=False, text=f"the weights are gated and there is no token: {remedy}")
    needed = "needed: the weights are gated" if spec.is_gated else "not needed"
    return Finding(name="hub", is_ok=True, text=f"would be asked for what its cache lacks; {token} ({needed})")


def _weights(source: EncoderSource, spec: EncoderSpec) -> list[Finding]:
    try:
        encoder = source.load(torch.device("cpu"))
        file = source.weights_file()
    except PromptmilError as error:
        return [Finding(name="weights", is_ok=False, text=str(error))]
    loaded = f"loaded, fingerprint {encoder.fingerprint[:8]}"
    if file is None or not spec.weights_sha256:
        return [Finding(name="weights", is_ok=True, text=f"{loaded}; no published hash to compare with")]
    found = sha256_of_file(file)
    if found != spec.weights_sha256:
        text = f"{file.name} has SHA-256 {found[:12]}…, published is {spec.weights_sha256[:12]}…: fetch it again"
        return [Finding(name="weights", is_ok=False, text=text)]
    return [Finding(name="weights", is_ok=True, text=f"{loaded}; SHA-256 {found[:12]}… as published")]
