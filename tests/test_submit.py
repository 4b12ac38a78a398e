"""The batch file: what it asks for, that it runs exactly the line as typed, and what it does with signals."""

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from subprocess import PIPE

import bounded
import pytest
from pyramids import tissue_pixels, write_slide

from feature_extraction.commands.submit import task_words
from feature_extraction.errors import InputError
from feature_extraction.sbatch import RESTARTS, SlurmArray, sbatch_text
from mil.cli import main

SHOW = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]
CALM = ("%j", "a b", "it's", '"double"', "$HOME `id` \\ é", "x=[1,2]", "#no comment", "two\nlines", "~del", "")


def array(**changes: object) -> SlurmArray:
    nothing = dict.fromkeys(["at_once", "mem", "time", "partition", "account", "qos"])
    options = {"tasks": 4, "cpus": 2, "gpus": 0, "extra": [], "setup": [], **nothing, **changes}
    return SlurmArray(**options)


def written(folder: Path, program: list[str], words: list[str] | None = None, **changes: object) -> Path:
    path = folder / "job.sbatch"
    path.write_text(
        sbatch_text(
            array(**changes), program=program, words=words or [], workers=4, log_folder=folder, run_folder=folder
        )
    )
    return path


def options_of(text: str) -> list[str]:
    """The directives as sbatch takes them apart: one option a line, quotes as in a shell."""
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    return [option for line in lines for option in shlex.split(line)]


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    for index in range(3):
        write_slide(tmp_path / "slides" / f"S{index}.svs", tissue_pixels(600, 600, seed=index))
    return tmp_path / "slides"


def test_the_file_asks_for_what_was_configured_and_for_nothing_else(tmp_path: Path):
    folder = tmp_path / "it's 100 % here"
    calm = options_of(sbatch_text(array(), program=SHOW, words=[], workers=3, log_folder=folder, run_folder=tmp_path))
    assert calm == [
        "--job-name=promptmil-extract",
        "--array=0-2",
        "--cpus-per-task=2",
        "--requeue",
        "--open-mode=append",
        "--signal=B:USR1@120",
        f"--chdir={tmp_path}",
        f"--output={tmp_path}/it's 100 %% here/%A_%a.log",
    ]
    asked = {"at_once": 2, "mem": "8G", "time": "01:00:00", "partition": "gpu", "account": "lab", "qos": "low"}
    full = sbatch_text(
        array(**asked, gpus=1, extra=["--constraint=a100", "--nice"], setup=["module load cuda"]),
        program=SHOW,
        words=[],
        workers=3,
        log_folder=folder,
        run_folder=tmp_path,
    )
    found = set(options_of(full)) - set(calm)
    expected = ["--mem=8G", "--time=01:00:00", "--partition=gpu", "--account=lab", "--qos=low", "--gres=gpu:1"]
    assert found == {*expected, "--array=0-2%2", "--constraint=a100", "--nice"}
    assert full.index("module load cuda") < full.index(SHOW[0])


def test_the_task_gets_every_word_as_it_was_typed(tmp_path: Path):
    path = written(tmp_path, SHOW, list(CALM), setup=["export OMP_NUM_THREADS=3"])
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "6", "SLURM_CPUS_PER_TASK": "2"}
    done = bounded.run(["bash", str(path)], env=environment, check=True)
    words = json.loads(done.stdout.splitlines()[0])
    assert words == ["threads=3", *CALM, "worker=2", "workers=4"]  # a task beyond the four begins like the third
    assert done.stdout.splitlines()[1:] == ["task 6 ended with code 0"]
    assert done.stderr == ""


def noting_requeues(folder: Path) -> dict[str, str]:
    """Slurm is not needed for what the shell does: `scontrol` here writes into ``called`` that it was called."""
    tool = folder / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {folder}/called\n')
    tool.chmod(0o755)
    own = {"PATH": f"{tool.parent}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "17"}
    return {**os.environ, **own}


@pytest.mark.parametrize(
    ("number", "child", "restarts", "code", "is_requeued"),
    [
        (signal.SIGUSR1, "trap 'exit 4' USR1", None, 4, True),
        (signal.SIGUSR1, "trap 'exit 4' USR1", RESTARTS - 1, 4, True),
        (signal.SIGUSR1, "trap 'exit 4' USR1", RESTARTS, 4, False),
        (signal.SIGUSR1, "trap 'exit 0' USR1", None, 0, False),
        (signal.SIGUSR1, "trap 'exit 3' USR1", None, 3, False),
        (signal.SIGUSR1, "true", None, 138, True),  # it came while the interpreter was still loading
        (None, "trap 'exit 4' TERM; kill -TERM $$", None, 4, False),
        (None, "exit 3", None, 3, False),
        (None, "kill -KILL $$", None, 137, False),
    ],
)
def test_a_task_is_requeued_when_its_time_was_up_and_not_otherwise(
    tmp_path: Path, number: int | None, child: str, restarts: int | None, code: int, is_requeued: bool
):
    program = ["bash", "-c", f"{child}; echo ready; while true; do sleep .05; done", "child"]
    environment = noting_requeues(tmp_path)
    environment |= {} if restarts is None else {"SLURM_RESTART_COUNT": str(restarts)}
    words = ["bash", str(written(tmp_path, program))]
    with bounded.started(words, env=environment, stdout=PIPE, stderr=PIPE, start_new_session=True) as task:
        if number is not None:
            assert task.stdout is not None
            assert task.stdout.readline() == "ready\n"
            task.send_signal(number)
        output, errors = task.communicate(timeout=30)
    assert task.returncode == code, errors
    assert f"task 2 ended with code {code}" in output
    called = tmp_path / "called"
    assert (called.read_text() if called.is_file() else "") == ("requeue 17_2\n" if is_requeued else "")


@pytest.mark.parametrize(("name", "code", "is_requeued"), [("USR1", 4, True), ("TERM", 4, False)])
def test_a_signal_that_comes_before_the_command_has_its_number_is_handed_on(
    tmp_path: Path, name: str, code: int, is_requeued: bool
):
    """Where the machine is busy the command may be at work before the shell goes on."""
    at_that_moment = f"""trap '[ "$BASH_COMMAND" != "child=\\$!" ] || kill -{name} $$' DEBUG"""
    quick = "sleep() { command sleep 0.5; }"  # also instead of the ten seconds before TERM is sent again
    does = "trap 'exit 4' USR1 TERM; while true; do sleep .05; done"
    path = written(tmp_path, ["bash", "-c", does, "child"], setup=[at_that_moment, quick])
    done = bounded.run(["bash", str(path)], env=noting_requeues(tmp_path), seconds=30)
    assert done.returncode == code, done.stderr
    assert "task 2 ended with code 4" in done.stdout
    assert (tmp_path / "called").is_file() == is_requeued


def test_a_cancelled_task_waits_for_its_command_and_is_not_requeued(tmp_path: Path):
    """Slurm signals the shell and the command; a time limit that is near at the same moment changes nothing."""
    child_does = "trap '' USR1; trap 'sleep .5; exit 4' TERM; echo $$; while true; do sleep .05; done"
    words = ["bash", str(written(tmp_path, ["bash", "-c", child_does, "child"]))]
    environment = noting_requeues(tmp_path)
    with bounded.started(words, env=environment, stdout=PIPE, stderr=PIPE, start_new_session=True) as task:
        assert task.stdout is not None
        child = int(task.stdout.readline())
        begin = time.monotonic()
        task.send_signal(signal.SIGTERM)
        os.kill(child, signal.SIGTERM)
        time.sleep(0.2)
        task.send_signal(signal.SIGUSR1)
        task.wait(timeout=30)
        assert time.monotonic() - begin > 0.5
        assert task.stdout.readline() == "task 2 ended with code 4\n"
        assert task.returncode == 4
    assert not (tmp_path / "called").is_file()


def test_a_dry_run_writes_and_prints_one_file(slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    line = ["extract", "submit", f"slides={slides}", "cluster=slurm", "cluster.tasks=8", f"out={out}", "batch_size=8"]
    assert main([*line, "cluster.dry_run=true", "wait=true"]) == 0
    shown = capsys.readouterr()
    path = out / "submit" / "extract.sbatch"
    assert shown.out == path.read_text()
    assert "3 slides, 3 tasks" in shown.err  # no more tasks than slides
    assert f"sbatch {path}" in shown.err
    assert [file for file in out.rglob("*") if file.is_file()] == [path]
    assert bounded.run(["bash", "-n", str(path)]).returncode == 0
    body = shown.out[shown.out.index(f"{sys.executable} -P -m mil extract threads=") :]
    for word in (f"slides={slides}", f"out={out}", "batch_size=8", "cluster=local", "wait=false"):
        assert word in shlex.split(body)
    assert "cluster.tasks" not in shown.out
    assert "wait=true" not in shown.out


def test_submitting_loads_no_torch(slides: Path, tmp_path: Path):
    line = ["extract", "submit", f"slides={slides}", f"out={tmp_path / 'out'}", "cluster=slurm", "cluster.dry_run=true"]
    code = f"import sys; from mil.cli import main; code = main({line!r}); sys.exit(code or ('torch' in sys.modules))"
    done = bounded.run([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr


def test_the_task_itself_does_what_extract_does(slides: Path, tmp_path: Path):
    """The file is plain bash: without Slurm it runs as well, one task after the other."""
    from feature_extraction.store import FeatureFile

    line = ["extract", "submit", f"slides={slides}", f"out={tmp_path / 'out'}", "cluster=slurm", "cluster.dry_run=true"]
    assert main(line) == 0
    path = tmp_path / "out" / "submit" / "extract.sbatch"
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "1"}
    done = bounded.run(["bash", str(path)], env=environment)
    assert done.returncode == 0, done.stderr
    assert sorted(FeatureFile(file).header.slide_id for file in (tmp_path / "out").glob("*/*.h5")) == ["S0", "S1", "S2"]


def test_without_sbatch_the_file_is_there_and_the_message_says_so(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["extract", "submit", "cluster=slurm", f"slides={slides}", f"out={tmp_path / 'out'}"]) == 2
    path = tmp_path / "out" / "submit" / "extract.sbatch"
    shown = capsys.readouterr()
    assert "no sbatch on this machine" in shown.err
    assert f"sbatch {path}" in shown.err
    assert path.read_text() == shown.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "cluster=local: nothing to submit to"),
        (["cluster=slurm", "cluster.tasks=0"], "cluster.tasks=0: expected"),
        (["cluster=slurm", "cluster.cpus=many"], "cluster.cpus=many: expected"),
        (["cluster=slurm", "cluster.at_once=0"], "cluster.at_once=0: expected"),
        (["cluster=slurm", "cluster.gpus=-1"], "cluster.gpus=-1: expected"),
        (["cluster=slurm", "cluster.extra=[constraint]"], "is no option of sbatch"),
        (["cluster=slurm", "cluster.setup=module"], "cluster.setup=module: expected a list"),
        (["cluster=slurm", "cluster.colour=red"], "colour"),
        (["cluster=slurm", "-m", "batch_size=8,16"], "submit once for each configuration"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    slides: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["extract", "submit", f"slides={slides}", f"out={tmp_path / 'out'}", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.sbatch"))


def test_a_folder_that_slurm_cannot_name_is_refused(tmp_path: Path):
    for name in ("two\nlines", "back\\slash"):
        with pytest.raises(InputError, match="line break or a backslash"):
            sbatch_text(array(), program=SHOW, words=[], workers=1, log_folder=tmp_path / name, run_folder=tmp_path)


def test_a_task_keeps_all_words_but_those_about_sharing_out():
    words = ["--config-dir", "my", "slides=s", "+cluster=slurm", "cluster.time=1", "workers=3", "worker=1", "wait=true"]
    words += ["tiling.wait=1", "~clusters", "also=[wait=1]"]
    kept = ["--config-dir", "my", "slides=s", "tiling.wait=1", "~clusters", "also=[wait=1]"]
    assert task_words(words) == [*kept, "cluster=local", "wait=false"]
