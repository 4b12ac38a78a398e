"""Where weights are found: folders, files, the hub's cache without a network, and what is said when it is in vain."""

import http.server
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import test_keep
import test_musk
import tiny_clip
import torch
from encoder_promises import tiles

from feature_extraction.encoders import weights
from feature_extraction.encoders.hf_clip import HfClipSource
from feature_extraction.encoders.open_clip import OpenClipSource
from feature_extraction.encoders.weights import find_beside, find_file, find_folder
from feature_extraction.errors import InputError
from mil.cli import main

CPU = torch.device("cpu")
OUT_OF_REACH = r"owner/nowhere: .*\(it cannot be reached and its cache does not have it\); set encoder\.path"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of owner/model in a hub's cache, as earlier fetches left it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = tmp_path / "hub" / "models--owner--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(COMMIT)
    (model / "snapshots" / COMMIT).mkdir(parents=True)
    return model / "snapshots" / COMMIT


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, str]]]:
    """A hub on this machine that answers everything with the status and the error code in the list."""
    answer: list[tuple[int, str]] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, code = answer[0]
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815 - the names that http.server calls

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        online_at(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        yield answer
        server.shutdown()
        thread.join(120)


def online_at(monkeypatch: pytest.MonkeyPatch, hub: str) -> None:
    weights._is_out_of_reach.cache_clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub)
    huggingface_hub.close_session()


def test_every_part_is_found_in_the_cache_without_a_network(cache: Path):
    tiny_clip.save(cache, "clip")
    source = HfClipSource(path="owner/model", tile_mpp=0.5)
    assert not source.is_local()
    encoder = source.load(CPU)
    assert encoder.spec.source == "owner/model"
    assert encoder.embed_texts(["keratin pearls"]).shape == (1, 24)
    assert source.weights_file() == cache / "model.safetensors"


@pytest.mark.parametrize("family", [test_keep, test_musk])
def test_a_rebuilt_family_needs_no_network_either(family: object, cache: Path, tmp_path: Path):
    (tmp_path / "made").mkdir()
    expected = family.tiny(tmp_path / "made")
    shutil.copytree(tmp_path / "made", cache, dirs_exist_ok=True)
    found = family.load_from("owner/model")
    assert found.fingerprint == expected.fingerprint
    assert torch.equal(found.embed_texts(["keratin"]), expected.embed_texts(["keratin"]))
    batch = tiles(1, family.SIDE)
    assert torch.equal(found.embed_tiles(batch, ["joint"])["joint"], expected.embed_tiles(batch, ["joint"])["joint"])


def test_the_first_name_that_is_there_counts_and_none_is_said(cache: Path, tmp_path: Path):
    names = ("model.safetensors", "pytorch_model.bin")
    (cache / "pytorch_model.bin").write_text("")
    assert find_file("owner/model", names, revision="") == cache / "pytorch_model.bin"
    assert find_file("owner/model", names, revision=COMMIT) == cache / "pytorch_model.bin"
    assert find_beside("owner/model", ("vocab.txt",), revision="") is None
    assert find_beside(str(cache / "pytorch_model.bin"), names, revision="") == cache / "pytorch_model.bin"
    with pytest.raises(InputError, match=r"encoder\.path=owner/model: a\.bin or b\.bin is not in it; give the file"):
        find_file("owner/model", ("a.bin", "b.bin"), revision="")


def test_a_model_that_is_not_in_the_cache_is_one_line_whatever_is_asked_of_it():
    for ask in (find_file, find_beside):
        with pytest.raises(InputError, match="HF_HUB_OFFLINE is set and its cache does not have it") as caught:
            ask("owner/nowhere", ("config.json",), revision="")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "GatedRepo", r"its terms are not accepted: .* then `hf auth login` or set HF_TOKEN"),
        (404, "RepoNotFound", "there is no such model, or it is private"),
        (404, "RevisionNotFound", "it has no such revision"),
        (500, "", "it cannot be reached and its cache does not have it"),
    ],
)
def test_why_a_hub_gives_nothing_is_said_in_one_line(status: int, code: str, said: str, hub: list[tuple[int, str]]):
    hub.append((status, code))
    with pytest.raises(InputError, match=rf"owner/nowhere: no such folder, and not to be had .*{said}") as caught:
        find_folder("owner/nowhere", revision="", patterns=["*.json"])
    assert "\n" not in str(caught.value)


def test_a_network_that_swallows_everything_is_waited_for_once_and_not_for_long(
    cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(weights, "PATIENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, and nobody answers
        online_at(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(InputError, match=OUT_OF_REACH):
            find_folder("owner/nowhere", revision="", patterns=["*.json"])
        assert find_folder("owner/model", revision="", patterns=["*.json"]) == cache
    assert weights._is_out_of_reach.cache_info().hits == 1


@pytest.mark.parametrize("revision", ["", COMMIT])
def test_a_hub_that_is_not_there_is_asked_once(revision: str, cache: Path, monkeypatch: pytest.MonkeyPatch):
    """Its client would try a pinned revision six times, with waits of up to eight seconds between."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    online_at(monkeypatch, f"http://127.0.0.1:{port}")
    with pytest.raises(InputError, match=OUT_OF_REACH):
        find_folder("owner/nowhere", revision=revision, patterns=["*.json"])
    assert find_folder("owner/model", revision=revision, patterns=["*.json"]) == cache
    assert waits == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("timm/vit_base_patch16_224.augreg_in21k", "not to be had from the hub"),  # the name of a model may have dots
        ("weights/conch.bin", "no such folder; give a local folder"),
        ("./owner/model", "no such folder; give a local folder"),
        ("/owner/model", "no such folder; give a local folder"),
    ],
)
def test_a_path_is_told_from_a_hub_id(path: str, said: str):
    with pytest.raises(InputError, match=said):
        find_file(path, ("model.safetensors",), revision="")


def test_a_tokenizer_that_is_nowhere_is_named_by_its_own_key(tmp_path: Path):
    test_musk.tiny(tmp_path)
    with pytest.raises(InputError, match=r"encoder\.tokenizer=/nowhere/tokenizer\.spm: no such folder"):
        test_musk.load_from(str(tmp_path), tokenizer="/nowhere/tokenizer.spm")


def test_a_text_tower_from_a_second_place_is_not_on_this_machine(tmp_path: Path):
    card = {"name": "x", "widths": {"joint": 4, "backbone": 8}, "input_px": 8, "tile_mpp": 0.5, "mean": [0, 0, 0]}
    facts = {"path": str(tmp_path), "spec": card | {"std": [1, 1, 1]}}
    config = '{"model_cfg": {"text_cfg": {"hf_model_name": "owner/text", "hf_tokenizer_name": "owner/text"}}}'
    (tmp_path / "open_clip_config.json").write_text(config)
    assert not OpenClipSource(**facts).is_local()
    assert OpenClipSource(**facts, text_path=str(tmp_path)).is_local()
    assert not OpenClipSource(**facts, text_path="owner/text").is_local()
    assert OpenClipSource(**facts, model="ViT-B-16").is_local()


@pytest.mark.pipeline
def test_the_doctor_tells_a_second_place_before_a_run_needs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = '{"model_cfg": {"text_cfg": {"hf_model_name": "owner/text", "hf_tokenizer_name": "owner/text"}}}'
    (tmp_path / "open_clip_config.json").write_text(config)
    assert main(["doctor", "encoder=biomedclip", f"encoder.path={tmp_path}"]) == 1
    assert "only its cache is searched" in " ".join(capsys.readouterr().err.split())
