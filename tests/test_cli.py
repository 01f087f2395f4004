"""The command line: exit codes, one style of errors, help, and what each verb prints."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from page_support import full_report

from act.cli import main as cli
from act.cli.main import VERBS, main, parse
from act.errors import ActError
from act.recipe.load import load_recipe, recipe_hash
from act.run.log import EventLog
from act.run.result import RunResult

TINY = """\
model:
  name: vit_tiny_patch16_224
  num_classes: 10
  kwargs: {img_size: 32, patch_size: 8, embed_dim: 48, depth: 2, num_heads: 3}
Prune: {align: 1}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


def output(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> tuple[str, str]:
    assert main(argv) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def command(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False, timeout=120, **options)


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\nfrom act.cli.main import build_parser\nbuild_parser().format_help()\n"
        "print([name for name in ('torch', 'timm', 'hydra', 'yaml', 'rich', 'numpy') if name in sys.modules])"
    )
    assert command("-c", code).stdout.strip() == "[]"
    started = time.perf_counter()
    shown = command("-m", "act", "--help")
    assert shown.returncode == 0 and all(verb in shown.stdout for verb in VERBS)
    assert time.perf_counter() - started < 5  # 0.1 s on an idle machine; importing torch alone takes far longer


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert left.value.code == 0 and "examples:" in text and f"vitcompress {verb}" in text


def test_the_examples_in_the_help_can_be_parsed() -> None:
    import shlex

    lines = [
        line.strip()
        for module in (*VERBS.values(), cli)
        for line in (getattr(module, "EPILOG", "") or cli._EPILOG).splitlines()
    ]
    examples = [
        line.split("   ")[0].partition(" > ")[0]
        for line in lines
        if line.startswith("vitcompress ") and "VERB" not in line
    ]
    assert len(examples) > 15
    for example in examples:
        assert parse(shlex.split(example)[1:]).verb in VERBS


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "r", "--dir", "d", "a=1", "b=2"],
        ["run", "r", "a=1", "--dir", "d", "b=2"],
        ["run", "--dir", "d", "r", "a=1", "b=2"],
        ["run", "--debug", "r", "a=1", "b=2", "--dir", "d"],
    ],
)
def test_overrides_may_stand_anywhere_after_the_recipe(argv: list[str]) -> None:
    args = parse(argv)
    assert (args.recipe, args.overrides, str(args.dir)) == ("r", ["a=1", "b=2"], "d")


@pytest.mark.parametrize(
    "words",
    ["A B data.x=1 --batch 1,8", "A B --batch 1,8 data.x=1", "--batch 1,8 A B data.x=1", "A --batch 1,8 B data.x=1"],
)
def test_files_and_overrides_of_bench_may_stand_on_both_sides_of_options(words: str) -> None:
    args = parse(["bench", *words.split()])
    assert (args.files, args.batch) == (["A", "B", "data.x=1"], "1,8")


@pytest.mark.parametrize(
    "argv", [[], ["fly"], ["run"], ["run", "r", "--speed", "9"], ["doctor", "extra"], ["bench", "a", "--fast", "b"]]
)
def test_a_wrong_command_line_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(argv)
    err = capsys.readouterr().err
    assert left.value.code == 2 and err.startswith("vitcompress: error: ") and len(err.splitlines()) == 1
    assert "--help" in err


def test_bad_input_is_one_line_per_problem_without_a_traceback(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("run", "plan", "nodes"):
        out, err = output(capsys, verb, recipe, "seed=-1", "Prune.patern=x", code=2)
        lines = err.splitlines()
        assert out == "" and len(lines) == 2 and "Traceback" not in err
        assert all(line.startswith("vitcompress: error: command line: ") for line in lines)
    _, err = output(capsys, "plan", recipe, "seed=-1", "--debug", code=2)
    assert "Traceback" in err


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (ActError("parity lost\nsecond line"), 1, ["parity lost", "second line"]),
        (KeyError("x"), 1, ["KeyError: 'x'; this should not happen, run again with --debug for the traceback"]),
        (KeyboardInterrupt(), 130, ["interrupted; continue with: vitcompress run r --dir 'a b'"]),
    ],
)
def test_other_failures(
    error: BaseException,
    code: int,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(args: Any) -> int:
        raise error

    monkeypatch.setattr(VERBS["run"], "command", fail)
    _, err = output(capsys, "run", "r", "--dir", "a b", code=code)
    assert err.splitlines() == [f"vitcompress: error: {line}" for line in expected]


def test_run_hands_over_recipe_and_folder(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import act.run.runner as runner

    calls: list[Any] = []

    def fake(recipe: Any, folder: Path, force: bool = False) -> Any:
        calls.append((recipe.name, recipe.seed, str(folder), force))
        EventLog(None)("warning", "busy")
        EventLog(None)("train_step", "step 1")
        return RunResult("missed", 3, folder, full_report())

    monkeypatch.setattr(runner, "run", fake)
    assert main(["run", recipe, "seed=5"]) == main(["run", recipe, "--dir", "x", "--force"]) == 3
    assert calls == [("tiny", 5, "runs/tiny", False), ("tiny", 0, "x", True)]
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("step 1") == 2
    out, err = output(capsys, "run", recipe, "--json", code=3)
    assert json.loads(out) == full_report() and "step 1" in err
    out, err = output(capsys, "--quiet", "run", recipe, "Prune.align=1", code=3)
    assert out.startswith("missed: Top-1 68.00 → 67.20") and out.endswith("runs/tiny/report.html\n")
    assert len(out.splitlines()) == len(err.splitlines()) == 1 and "busy" in err


def test_quiet_leaves_notes_and_progress_out(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(recipe).write_text(f"{TINY}QuantAware: {{quantize_op_types: [linear, matmul_v2]}}\n")
    words = ("plan", recipe)
    assert "note: " in output(capsys, *words)[1]
    out, err = output(capsys, *words, "--quiet")
    assert "tiny: vit_tiny" in out and "note: " not in err
    assert "note: " in output(capsys, *words)[1]  # only that command was quiet
    assert json.loads(output(capsys, "recipes", "ls", "--json", "--quiet")[0])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_every_verb_and_option(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, _ = output(capsys, "completion", shell)
    assert all(verb in script for verb in VERBS) and "--space" in script.replace("-l space", "--space")
    program = shutil.which(shell)
    if program is not None:
        file = tmp_path / "script"
        file.write_text(script)
        assert subprocess.run([program, "-n", file], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vitcompress pl", {"plan"}),
        ("vitcompress verify --ta", {"--target"}),
        ("vitcompress completion ", {"bash", "zsh", "fish"}),
        ("vitcompress recipes l", {"ls"}),
    ],
)
def test_bash_completes_with_the_script(line: str, expected: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    script, _ = output(capsys, "completion", "bash")
    words = line.split(" ")
    setting = f"COMP_WORDS=({' '.join(words)} ''); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'"
    ask = f"{setting}; _shtab_vitcompress; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == expected, done.stderr


def test_plan(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = output(capsys, "plan", recipe, "QuantAware={}", "TrainConfig.train_iter=9")
    assert (
        "1. prune" in out
        and "2. quant_aware" in out
        and "blocks.{0-1}.mlp.fc1" in out
        and "learns from the labels" in out
    )
    assert "head): patch embedding or head: left dense" in out
    assert "warning: data.train: not given" in err
    found = json.loads(output(capsys, "plan", recipe, "--json")[0])
    assert found["recipe_hash"] == recipe_hash(load_recipe(recipe))
    (stage,) = found["stages"]
    assert stage["name"] == "prune" and len(stage["layers_done"]) == 8
    assert {layer["name"] for layer in stage["layers_left"]} == {"patch_embed.proj", "head"}
    listed = output(capsys, "plan", recipe, "--layers")[0]
    assert all(f"touches {name}" in listed for name in stage["layers_done"])


def test_plan_with_time(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["data.train=builtin:digits.tar/train", "data.limit_train=32", "data.batch_size=8", "data.workers=0"]
    words = ["plan", recipe, "QuantPost={}", "TrainConfig.train_iter=1000", *data]
    assert all(stage["time"] is None for stage in json.loads(output(capsys, *words, "--json")[0])["stages"])
    prune, quant = json.loads(output(capsys, *words, "--time", "--json")[0])["stages"]
    assert quant["time"] is None and prune["time"]["step_seconds"] > 0
    assert prune["time"]["images_per_second"] == pytest.approx(8 / prune["time"]["step_seconds"])
    assert prune["time"]["hours"] == pytest.approx(1000 * prune["time"]["step_seconds"] / 3600)
    out, _ = output(capsys, *words, "--time")
    row = next(line.split() for line in out.splitlines() if line.split()[:2] == ["prune", "1000"])
    assert "estimated from" in out and float(row[4]) == pytest.approx(1000 * float(row[2]) / 3600, rel=0.01)


def test_nodes(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = json.loads(output(capsys, "nodes", recipe, "--pattern", "blocks.1*", "--json")[0])
    by_name = {node["name"]: node for node in nodes}
    assert by_name["blocks.1"]["shape"] == [17, 48] and by_name["blocks.1.mlp.fc1"]["parameters"] == 48 * 192 + 192
    assert all(name.startswith("blocks.1") for name in by_name)
    out, _ = output(capsys, "nodes", recipe, "model.kwargs.depth=1")
    assert "17 x 48" in out and "blocks.1" not in out
    _, err = output(capsys, "nodes", recipe, "--pattern", "layers.*", code=2)
    assert "no module" in err
    _, err = output(capsys, "nodes", "vit_tinny_patch16_224", code=2)
    assert "did you mean vit_tiny_patch16_224?" in err


def test_recipes(tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = output(capsys, "recipes", "ls")
    assert re.search(r"quickstart .*Prune.* top1 96\.38 -> 96\.10, 3\.4x smaller ", out)
    assert "quickstart" in {found["name"] for found in json.loads(output(capsys, "recipes", "ls", "--json")[0])}
    shown, _ = output(capsys, "recipes", "show", "quickstart")
    assert shown.startswith("# The embedded example")
    resolved, _ = output(capsys, "recipes", "show", "quickstart", "--resolved", "seed=7")
    assert "seed: 7" in resolved and "clip_grad: 1.0" in resolved
    copy = tmp_path / "mine.yaml"
    output(capsys, "recipes", "cp", "quickstart", str(copy))
    assert copy.read_text() == shown
    _, err = output(capsys, "recipes", "cp", recipe, str(copy), code=2)
    assert "exists" in err and copy.read_text() == shown
    output(capsys, "recipes", "cp", recipe, str(copy), "--force")
    assert copy.read_text() == TINY
    _, err = output(capsys, "recipes", "cp", recipe, str(tmp_path / "no" / "x.yaml"), code=2)
    assert "no such folder" in err


def test_json_of_validate_has_the_problems(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "recipes", "validate", recipe, "--json")[0])
    assert found == [{"recipe": recipe, "ok": True, "problems": []}]
    out, err = output(capsys, "recipes", "validate", recipe, "Prune.patern=x", "--json", code=2)
    assert err == "" and [item["ok"] for item in json.loads(out)] == [False] and "patern" in out


def test_json_needs_no_file_where_it_may_have_one() -> None:
    assert [str(parse(["bench", "a.onnx", *words]).json) for words in ((), ("--json",), ("--json", "b.json"))] == [
        "None",
        "-",
        "b.json",
    ]
    assert str(parse(["sensitivity", "r", "--json"]).json) == "-"


def test_validate(tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = output(capsys, "recipes", "validate", "quickstart", recipe, "seed=3")
    assert out.splitlines() == ["quickstart: ok", f"{recipe}: ok"]
    bad = tmp_path / "bad.yaml"
    bad.write_text("Prun: {}\nQuantization: {quantize_op_types: [mul]}\n")
    out, err = output(capsys, "recipes", "validate", recipe, str(bad), "nowhere.yaml", code=2)
    assert out.splitlines() == [f"{recipe}: ok"] and len(err.splitlines()) == 2
    bad.write_text("Quantization: {quantize_op_types: [mul]}\n")
    _, err = output(capsys, "recipes", "validate", str(bad))
    assert err == f"note: {bad}: QuantAware.quantize_op_types: ACT's mul is read as linear\n"


def test_verify_prints_failures_and_exits_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import act.verify.folder as folder
    from act.strategies.base import Invariant

    checks = [Invariant("checksums", True), Invariant("2:4 along K", False, "blocks.0: 1 group")]
    monkeypatch.setattr(folder, "verify_folder", lambda path: checks)
    out, _ = output(capsys, "verify", "x", code=3)
    assert "1 of 2 checks FAIL" in out and "blocks.0: 1 group" in out
    found = json.loads(output(capsys, "verify", "x", "--json", code=3)[0])
    assert found["holds"] is False and [check["holds"] for check in found["checks"]] == [True, False]
    monkeypatch.setattr(folder, "verify_folder", lambda path: checks[:1])
    assert "everything holds" in output(capsys, "verify", "x")[0]
    assert output(capsys, "verify", "x", "--quiet")[0].splitlines()[0] == "x: everything holds"
    assert "checksums" not in output(capsys, "verify", "x", "--quiet")[0]


def test_a_closed_pipe_is_no_error() -> None:
    argv = [sys.executable, "-m", "act", "recipes", "show", "quickstart"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # before anything is written, as `| head -0` would
        assert process.stderr.read() == b""
