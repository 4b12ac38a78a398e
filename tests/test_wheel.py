"""What is installed elsewhere: configuration, weights and templates travel in the wheel, and the console finds them."""

import os
import sys
import zipfile
from pathlib import Path

import bounded

ROOT = Path(__file__).parent.parent


def test_the_wheel_works_away_from_the_checkout(tmp_path: Path):
    bounded.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(site)
    tops = {name.split("/")[0] for name in names}
    assert {"mil", "feature_extraction"} < tops
    assert all(
        top.startswith("promptmil-") for top in tops - {"mil", "feature_extraction"}
    )  # nothing else at top level
    vendored = {f"mil/viewer/vendor/openseadragon.{rest}" for rest in ("min.js", "LICENSE.txt")}
    assert vendored | {"mil/viewer/page/slide.html", "mil/viewer/page/slide.js"} < set(names)
    assert not any("tests" in name or ".work" in name for name in names)
    code = "import sys; from mil.cli import main; sys.exit(main(sys.argv[1:]))"
    (tmp_path / "elsewhere").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    for words in (["prompts", "prompts=demo", "out=bank"], ["train", "--cfg", "job"], ["doctor", "out=."]):
        done = bounded.run(
            [sys.executable, "-c", code, *words],
            cwd=tmp_path / "elsewhere",
            env=environment,
        )
        assert done.returncode == 0, done.stderr
    assert list((tmp_path / "elsewhere" / "bank").glob("demo-demo-*.safetensors"))
    shown = bounded.run(
        [sys.executable, "-c", "import mil; print(mil.__file__)"],
        cwd=tmp_path / "elsewhere",
        env=environment,
        check=True,
    )
    assert str(site) in shown.stdout
