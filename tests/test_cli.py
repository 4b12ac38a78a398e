"""The console: help without torch, exit codes, messages that say what to do."""

import signal
import sys
from pathlib import Path

import bounded
import pytest
from hydra.errors import HydraException

from mil.cli import ACTIONS, COMMANDS, _Jobs, main


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative folders in these commands must not litter the checkout."""
    monkeypatch.chdir(tmp_path)


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*COMMANDS, *ACTIONS))


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["extract", "--help"],
        ["extract", "submit", "cluster=slurm", "--help"],
        ["extract", "status", "--cfg", "job"],
        ["train", "--cfg", "job"],
        ["sweep", "status", "-m", "--cfg", "job"],
    ],
)
def test_help_and_configuration_load_no_torch(words: list[str]):
    code = f"import sys; from mil.cli import main; code = main({words!r}); sys.exit(code or ('torch' in sys.modules))"
    done = bounded.run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("demo", "doctor")])
def test_missing_keys_are_all_named(name: str, capsys: pytest.CaptureFixture[str]):
    assert main([name]) == 2
    assert "needs " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["extrakt"], "unknown command 'extrakt'"),
        (["extract", "sumbit"], "unknown action 'extract sumbit'; known: extract submit, extract status"),
        (["train", "status"], "unknown action 'train status'; known: none of this command"),
        (["extract", "no_such_key=1", "slides=x", "out=y"], "no_such_key"),
        (["extract", "encoder=none", "slides=x", "out=y"], "encoder/none"),
        (["extract", "slides=/nowhere", "out=y"], "expected a folder of slides or a .csv table"),
        (["heatmap", "run=/nowhere", "features=x", "out=y"], "no finished run in it (done.json is missing)"),
        (["heatmap", "features=x", "out=y"], "give either run=… (a run folder) or runs=… (a sweep)"),
        (["predict", "runs=/nowhere", "features=x", "out=y"], "runs=/nowhere: no such folder"),
        (["zeroshot", "features=/nowhere", "bank=x", "out=y"], "features=/nowhere: no such folder"),
        (["split", "labels=/nowhere.csv", "out=y"], "/nowhere.csv: cannot be read"),
        (["prompts", "prompts=none", "out=y"], "no such set; known: brca, camelyon, demo"),
    ],
)
def test_bad_input_ends_with_two_and_says_why(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_geometry_the_encoder_was_not_trained_for_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.svs").touch()
    words = ["extract", f"slides={tmp_path}", f"out={tmp_path / 'out'}", "tiling.tile_mpp=0.25"]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "trained at 1.0" in message
    assert "tiling.allow_off_spec=true" in message
    assert main([*words, "tiling.allow_off_spec=true"]) == 3  # it starts, and the empty file fails as a slide


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("default_mpp=0", "default_mpp=0: expected"),
        ("default_mpp=abc", "default_mpp=abc: expected"),
        ("default_mpp=-1", "default_mpp=-1: expected"),
        ("batch_size=0", "batch_size=0: expected"),
        ("threads=0", "threads=0: expected"),
        ("tiling.step_px=-3", "tiling.step_px=-3: expected"),
        ("tolerate_bad_tiles=1", "expected a share"),
        ("precision=fp8", "expected float32 or bf16"),
        ("space=text", "offers joint, backbone"),
    ],
)
def test_an_option_out_of_range_is_refused(word: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.svs").touch()
    assert main(["extract", f"slides={tmp_path}", f"out={tmp_path / 'out'}", word]) == 2
    assert message in capsys.readouterr().err


def test_doctor_is_content_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", f"out={tmp_path}"]) == 0
    shown = capsys.readouterr().err
    assert "OpenSlide" in shown
    assert "licence Apache-2.0" in shown


def test_doctor_without_out_writes_nothing(tmp_path: Path):
    (tmp_path / "here").mkdir()
    assert main(["doctor"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_doctor_finds_missing_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", f"out={tmp_path}", "encoder=hf_clip", f"encoder.path={tmp_path}"]) == 1
    assert "config.json is missing" in " ".join(capsys.readouterr().err.split())


def test_a_signal_before_the_command_runs_stops_it_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def composing(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as interrupt:  # as OmegaConf and Hydra do
            raise HydraException("a fault of the configuration") from interrupt

    monkeypatch.setattr(_Jobs, "composed", composing)
    assert main(["doctor"]) == 4
    assert capsys.readouterr().err == "stopped; run the same command again to go on\n"
