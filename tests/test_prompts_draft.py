"""Drafts of a language model: through a real server on this machine, and by a real (tiny, untrained) model."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
import transformers
from hydra import compose, initialize_config_dir
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from feature_extraction.commands.prompts_draft import API_KEY, run
from feature_extraction.configuration import conf_folder
from feature_extraction.encoders.demo import DemoSource
from feature_extraction.errors import InputError
from feature_extraction.prompt_draft import Wish, draft, endpoint_writer, local_writer, read_reply, request
from feature_extraction.prompt_lint import lint_file
from feature_extraction.prompts import parse_prompt_set, read_prompt_set
from feature_extraction.text_bank import build_bank

ANSWERS = {
    "onion tumor": {"names": ["onion tumor", "tumor of onion type"], "concepts": {"layers": ["round layered nests"]}},
    "benign kidney": {"names": ["benign kidney", "kidney cortex"], "concepts": {"tubules": ["small even tubules"]}},
}
CLASSES = "classes={ONION: onion tumor, normal: benign kidney}"


@contextmanager
def server(status: int = 200, garble: str = "") -> Iterator[tuple[str, list[tuple[dict[str, object], str | None]]]]:
    """A server that answers as OpenAI's chat completions do, and what it was asked."""
    asked: list[tuple[dict[str, object], str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((body, self.headers["Authorization"]))
            text = body["messages"][0]["content"]
            name = text.split("Class to describe: ")[1].splitlines()[0]
            said = f"<think>{{hm}}</think>Sure!\n```json\n{json.dumps(ANSWERS[name])}\n```"
            answer = {"choices": [{"message": {"role": "assistant", "content": garble if name in garble else said}}]}
            found = json.dumps(answer if self.path == "/v1/chat/completions" else {"no": "such path"}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)

        def log_message(self, *words: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/v1", asked
        finally:
            running.shutdown()
            thread.join()


def config(*words: str):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("prompts_draft", ["about='kidney resections on H&E'", CLASSES, "background=normal", *words])


def test_an_endpoint_drafts_a_set_that_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(API_KEY, "a secret")
    out = tmp_path / "mine.yaml"
    with server() as (endpoint, asked):
        assert run(config(f"endpoint={endpoint}", "model=some-model", f"out={out}")) == 0
    assert [body["model"] for body, _ in asked] == ["some-model", "some-model"]
    assert {key for _, key in asked} == {"Bearer a secret"}
    found = read_prompt_set(out)
    assert found.source == f"DRAFT by the model some-model, {datetime.now(UTC).date().isoformat()}, not reviewed"
    assert found.classes[0].names == ("onion tumor", "tumor of onion type")
    assert [entry.is_background for entry in found.classes] == [False, True]
    assert out.read_text().startswith("# DRAFT of a language model; nobody has reviewed it")
    assert [defect.rule for defect in lint_file(out)] == ["unreviewed-draft"]
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "a secret" not in written
    assert "127.0.0.1" not in written
    assert "Sure!" in json.loads((tmp_path / "mine.replies.json").read_text())["replies"]["ONION"]


def test_a_reply_that_is_no_answer_leaves_the_class_without_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "mine.yaml"
    with server(garble="I cannot help with onion tumor.") as (endpoint, _):
        assert run(config(f"endpoint={endpoint}", "model=m", f"out={out}")) == 3
    shown = capsys.readouterr().err
    assert "class ONION: there is no JSON object with names and concepts in the reply" in shown
    assert "[empty-list]" in shown
    found, defects = parse_prompt_set(out)
    assert [(entry.name, bool(entry.names)) for entry in found.classes] == [("ONION", False), ("normal", True)]
    assert [defect.place for defect in defects] == ["class ONION: names"]
    with pytest.raises(InputError, match="class ONION: names"):
        build_bank(read_prompt_set(out), DemoSource().load(torch.device("cpu")))
    said = json.loads((tmp_path / "mine.replies.json").read_text())
    assert said["replies"]["ONION"] == "I cannot help with onion tumor."


def test_what_a_server_does_wrong_is_said_and_nothing_is_written(tmp_path: Path):
    out = tmp_path / "mine.yaml"
    with server(status=503) as (endpoint, _), pytest.raises(InputError, match="answered 503"):
        run(config(f"endpoint={endpoint}", "model=m", f"out={out}"))
    with server() as (endpoint, _), pytest.raises(InputError, match="not a chat completion"):
        run(config(f"endpoint={endpoint}/wrong", "model=m", f"out={out}"))
    with pytest.raises(InputError, match=r"no answer .* is the server running"):
        run(config(f"endpoint={endpoint}", "model=m", f"out={out}"))
    with pytest.raises(InputError, match="expected an address"):
        endpoint_writer("file:///etc/passwd", model="m", max_tokens=1, timeout_seconds=1.0)
    assert list(tmp_path.iterdir()) == []


def test_reviewed_work_is_never_overwritten(tmp_path: Path):
    out = tmp_path / "mine.yaml"
    out.write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        run(config("endpoint=http://127.0.0.1:9/v1", "model=m", f"out={out}"))
    assert out.read_text() == "mine"


def tiny_model(folder: Path, *, positions: int = 1024) -> Path:
    """A real GPT-2 with random weights, whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({mark: row for row, mark in enumerate([*alphabet, "<end>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    end = len(alphabet)
    transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=end + 1,
            n_positions=positions,
            n_embd=16,
            n_layer=1,
            n_head=2,
            bos_token_id=end,
            eos_token_id=end,
        )
    ).save_pretrained(folder)
    return folder


def test_an_untrained_local_model_is_run_and_its_garbage_is_kept_for_review(tmp_path: Path):
    folder = tiny_model(tmp_path / "tiny", positions=2048)
    out = tmp_path / "mine.yaml"
    assert run(config(f"model={folder}", f"out={out}", "max_tokens=12")) == 3
    found, defects = parse_prompt_set(out)
    assert [entry.names for entry in found.classes] == [(), ()]
    assert {defect.rule for defect in defects} == {"empty-list"}
    assert "by the model tiny, " in found.source
    assert str(tmp_path) not in out.read_text()
    said = json.loads((tmp_path / "mine.replies.json").read_text())
    assert set(said["refused"]) == {"ONION", "normal"}
    wish = Wish(
        task="kidney resections on H&E",
        classes={"ONION": "onion tumor", "normal": "benign kidney"},
        background=None,
        n_names=4,
        n_concepts=6,
        n_descriptions=2,
    )
    assert said["replies"]["ONION"] == local_writer(folder, max_tokens=12)(
        request(wish, "ONION")
    )  # greedy: the same again


def test_a_request_longer_than_the_model_reads_is_refused(tmp_path: Path):
    writer = local_writer(tiny_model(tmp_path / "tiny", positions=64), max_tokens=12)
    with pytest.raises(InputError, match="reads 64 tokens, the request has"):
        writer("a" * 70)
    with pytest.raises(InputError, match=r"config\.json is missing"):
        local_writer(tmp_path, max_tokens=1)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("", "no JSON object"),
        ('{"names": ["a"]}', "no JSON object"),
        ('{"names": [], "concepts": {"a": ["b"]}}', "names: expected a list of texts"),
        ('{"names": ["a"], "concepts": {"a": "b"}}', "concept a: expected a list of texts"),
        ('{"names": ["a"], "concepts": []}', "concepts: expected an object"),
    ],
)
def test_a_reply_is_read_strictly(reply: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_reply(reply)


def test_the_request_names_the_task_the_class_and_the_others():
    wish = Wish(
        task="T", classes={"A": "alpha", "B": "beta"}, background=None, n_names=1, n_concepts=2, n_descriptions=3
    )
    text = request(wish, "A")
    assert "Class to describe: alpha\nIt must be told from: beta" in text
    with pytest.raises(InputError, match="expected at least two"):
        draft(
            Wish(**{**vars_of(wish), "classes": {"A": "a"}}),
            lambda _: "",
            name="x",
            model="m",
            on=datetime.now(UTC).date(),
        )


def vars_of(wish: Wish) -> dict[str, object]:
    return {name: getattr(wish, name) for name in wish.__dataclass_fields__}
