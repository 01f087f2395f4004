"""Every verb given a missing or a wrong thing: exit code 2, one line that says what to do, and nothing is written."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from bad_input_support import make_place, missing, refused, the_refusal, tree

NO_RECIPE = ["no such recipe file", "shipped recipes: ", "quickstart"]
# The words after `vitcompress`, and parts of the one line that comes back
CASES: list[tuple[str, list[str]]] = [
    # no argument, an unknown one, one of the wrong type
    *((f"{verb}", ["required: ", f"see: vitcompress {verb} --help"]) for verb in
      ("run", "plan", "eval", "export", "verify", "analyze", "bench", "sensitivity", "search", "nodes", "engine",
       "recipes", "recipes show", "recipes cp", "recipes validate", "recipes freeze", "recipes push", "recipes pull",
       "reproduce", "compare", "completion")),
    *((f"{words} --fast", ["unknown: --fast", f"see: vitcompress {words.split()[0]} --help"]) for words in
      ("run ok.yaml", "plan ok.yaml", "verify folder", "analyze ok.yaml", "bench bad.onnx", "doctor", "recipes ls")),
    ("", ["required: VERB", "see: vitcompress --help"]),
    ("fly", ["invalid choice: 'fly'", "sensitivity"]),
    ("doctor ok.yaml", ["unknown: ok.yaml", "see: vitcompress doctor --help"]),
    ("run ok.yaml --dir", ["--dir: expected one argument"]),
    ("eval bad.onnx --recipe ok.yaml --threads many", ["--threads: invalid int value: 'many'"]),
    ("search ok.yaml --space space.yaml --sampler best", ["--sampler: invalid choice: 'best'", "nsga2"]),
    ("verify folder --target coreml", ["--target: invalid choice: 'coreml'", "tensorrt"]),
    ("bench bad.onnx --profile lines", ["--profile: invalid choice: 'lines'", "operators"]),
    # a recipe that is not there, or is none
    *((f"{verb} nowhere.yaml", ["nowhere.yaml", *NO_RECIPE]) for verb in
      ("run", "plan", "nodes", "analyze", "sensitivity", "recipes show", "recipes validate", "reproduce")),
    ("run /no/where.yaml", ["/no/where.yaml", *NO_RECIPE]),
    ("run quickstrat", ["did you mean quickstart?"]),
    ("run ''", ["RECIPE: empty", "name a YAML file"]),
    ("run folder", ["folder: a folder; a recipe is one YAML file"]),
    ("plan empty.yaml", ["empty.yaml: empty; a recipe names at least a model and data"]),
    ("plan text.txt", ["expected `section: ...` lines, found a single value"]),
    ("recipes show bad.onnx", ["bad.onnx: expected `section: ...` lines"]),
    ("recipes validate a=b", ["a=b: changes a recipe, and none is named"]),
    ("recipes validate bad.onnx", ["bad.onnx: expected `section: ...` lines"]),
    ("recipes cp nowhere mine.yaml", ["nowhere", *NO_RECIPE]),
    ("recipes cp quickstart no/mine.yaml", ["no: no such folder"]),
    ("recipes cp quickstart text.txt", ["text.txt: exists", "--force"]),
    ("search nowhere.yaml --space space.yaml", ["nowhere.yaml", *NO_RECIPE]),
    ("eval bad.onnx --recipe nowhere", ["nowhere", *NO_RECIPE]),
    # recipes from and for others
    ("reproduce ok.yaml", ["ok: records no results", "vitcompress recipes freeze RUN"]),
    ("recipes push nowhere here", ["nowhere", *NO_RECIPE]),
    ("recipes cp quickstart new.yaml seed=1", ["recipes: unknown: seed=1"]),
    ("recipes ls quickstart", ["recipes: unknown: quickstart"]),
    ("bench bad.onnx --keep new", ["--keep: keeps the files of --peers"]),
    ("recipes freeze folder -o 'a b.yaml'", ["a b: cannot name a recipe"]),
    ("recipes push quickstart text.txt/x", ["text.txt: no such folder"]),
    ("recipes pull nowhere", ["nowhere: no such file"]),
    ("recipes pull empty.yaml", ["empty.yaml: empty; a recipe names at least a model and data"]),
    ("recipes pull ftp://host/r.yaml", ["ftp:// is not known; allowed: a file or folder, https://HOST/PATH.yaml"]),
    ("recipes freeze nowhere -o mine.yaml", ["nowhere: "]),
    ("compare nowhere nowhere", ["nowhere: no such folder; name the folders of finished runs"]),
    ("compare folder folder", ["folder: has no report.json, so it is no finished run"]),
    ("completion dos", ["invalid choice: 'dos'", "fish"]),
    # values of the recipe that only the model, the data or the machine refuses
    ("run ok.yaml model.name=null", ["model.name: missing", "e.g. deit_tiny_patch16_224"]),
    ("run ok.yaml model.kwargs.embed_dim=33", ["model.kwargs: timm cannot build", "divisible by num_heads"]),
    ("run ok.yaml model.kwargs.depht=1", ["model.kwargs: timm cannot build", "'depht'"]),
    ("run ok.yaml data.input_size=[3,24,24]", ["cannot take images of [3, 24, 24]", "check data.input_size"]),
    ("plan ok.yaml data.input_size=[3,24,24]", ["cannot take images of [3, 24, 24]", "check data.input_size"]),
    ("nodes ok.yaml data.input_size=[3,24,24]", ["cannot take images of [3, 24, 24]", "check data.input_size"]),
    ("analyze ok.yaml data.input_size=[3,15,15]", ["cannot take images of [3, 15, 15]", "check data.input_size"]),
    ("run ok.yaml data.input_size=[1,16,16]", ["data.mean: timm's config", "3 values for 1 channel(s); give 1"]),
    ("run ok.yaml export.formats=[coreml]", ["export.formats: coreml", "onnxruntime, tensorrt, openvino"]),
    ("run ok.yaml target.backend=coreml", ["target.backend: 'coreml' is unknown", "onnxruntime, openvino"]),
    ("run ok.yaml target.max_drop=1", ["target.max_drop: 1.0 cannot be judged without a validation set"]),
    ("run ok.yaml ~QuantPost QuantAware={} data.train=null", ["data.train: QuantAware trains and needs images there"]),
    ("run ok.yaml --dir text.txt/x/y", ["--dir: text.txt/x/y cannot be written", "choose another folder"]),
    ("run ok.yaml ~QuantPost TokenMerge={} model.name=test_efficientnet model.kwargs=null", ["model.kwargs"]),
    # the run folder
    ("run ok.yaml --dir text.txt", ["--dir: text.txt cannot be written", "choose another folder"]),
    ("run ok.yaml --dir text.txt/x/y", ["--dir: text.txt/x/y cannot be written", "choose another folder"]),
    ("run ok.yaml --dir .", ["--dir: . has files but no run of vitcompress in it"]),
    ("export nowhere --to onnx", ["nowhere: has no recipe.yaml, so it is no finished run", "vitcompress run"]),
    ("export text.txt --to onnx", ["text.txt: has no recipe.yaml"]),
    ("export folder --to onnx TrainConfig.epochs=1", ["TrainConfig.epochs=1: would change the run", "export.*"]),
    # files to measure, to check, to score
    ("eval nowhere.onnx --recipe ok.yaml data.val=photos", ["nowhere.onnx: no such file"]),
    ("eval folder --recipe ok.yaml data.val=photos", ["folder: a folder; name one file in it"]),
    ("eval bad.onnx --recipe ok.yaml", ["data.val: not given; write data.val=FOLDER"]),
    ("eval bad.onnx --recipe ok.yaml data.val=photos", ["bad.onnx: not a readable ONNX file"]),
    ("eval zero.onnx --recipe ok.yaml data.val=photos", ["zero.onnx: ONNX Runtime cannot open it"]),
    ("eval text.txt --recipe ok.yaml data.val=photos", ["text.txt: not a readable ONNX file"]),
    ("eval bad.safetensors --recipe ok.yaml data.val=photos", ["bad.safetensors: not a readable safetensors file"]),
    ("eval ok.safetensors --recipe ok.yaml data.val=photos", ["ok.safetensors: format None", "vitcompress.packed"]),
    ("eval bad.onnx --recipe ok.yaml --backend coreml data.val=photos", ["coreml: unknown", "known: onnxruntime"]),
    ("eval bad.safetensors --recipe ok.yaml --backend onnxruntime data.val=photos", ["leave --backend out"]),
    ("eval bad.onnx --recipe ok.yaml --threads -1 data.val=photos", ["--threads: -1; allowed: 0 (all cores) to 4096"]),
    ("eval bad.onnx --recipe ok.yaml --threads 99999999 data.val=photos", ["--threads: 99999999", "4096"]),
    ("verify nowhere", ["nowhere: no such folder; name a run folder"]),
    ("verify text.txt", ["text.txt: a file; name a run folder"]),
    ("verify folder", ["folder: holds no artifact", "model.onnx"]),
    ("verify folder --sparse x", ["--sparse: given without --target tensorrt"]),
    ("verify folder --target tensorrt", ["holds neither model.tensorrt.onnx nor model.onnx"]),
    ("verify nowhere --target tensorrt", ["nowhere: no such file; name an ONNX file"]),
    ("verify bad.onnx --target tensorrt", ["bad.onnx: not a readable ONNX file"]),
    ("verify zero.onnx --target tensorrt", ["zero.onnx: not a readable ONNX file: it has no graph"]),
    ("analyze folder", ["folder/arch.json: cannot be read", "name a folder that holds a compressed model"]),
    ("analyze folder a=b", ["a=b: a run folder is analysed as it is"]),
    ("analyze vit_tinny_patch16_224", ["timm ", "did you mean vit_tiny_patch16_224?"]),
    ("analyze ''", ["has no model ''"]),
    ("nodes text.txt", ["has no model 'text.txt'", "timm.list_models()"]),
    ("nodes ok.yaml --pattern layers.*", ["--pattern: no module of", "* also matches dots"]),
    ("bench nowhere.onnx", ["nowhere.onnx: no such file or run folder"]),
    ("bench text.txt", ["text.txt: of unknown kind; allowed: .onnx, .xml"]),
    ("bench folder", ["folder: no finished run: it has no report.json that can be read"]),
    ("bench bad.onnx", ["bad.onnx: not a readable ONNX file"]),
    ("bench zero.onnx", ["zero.onnx: its graph has no input"]),
    ("bench bad.xml", ["bad.xml: OpenVINO cannot open it: not XML"]),
    ("bench page.xml", ["page.xml: OpenVINO cannot open it: its root is <html>"]),
    ("bench alone.xml", ["alone.xml: its weights alone.bin are not beside it"]),
    ("bench bad.onnx --baseline nowhere.onnx", ["--baseline: nowhere.onnx: no such file"]),
    ("bench bad.onnx --batch 0", ["--batch: 0; allowed: numbers from 1 to 65536"]),
    ("bench bad.onnx --batch 1,x", ["--batch: 1,x; allowed"]),
    ("bench bad.onnx --backend coreml", ["coreml: unknown; known: onnxruntime"]),
    ("bench bad.onnx --threads -2", ["--threads: -2; allowed: 0 to 4096"]),
    ("bench bad.onnx --repeats 0", ["--repeats: 0; allowed: 1 to 100000"]),
    ("bench bad.onnx --json folder", ["--json: folder: a folder; name a file"]),
    ("bench bad.onnx --json text.txt/x.json", ["--json: text.txt/x.json", "text.txt is a file"]),
    ("bench bad.onnx --picture folder", ["--picture: folder: a folder"]),
    ("bench bad.onnx --peers --keep text.txt", ["--keep: text.txt cannot be written"]),
    ("bench bad.onnx --peers coreml", ["--peers: coreml; known: onnxruntime, nncf, modelopt"]),
    ("bench bad.onnx data.limit_val=5", ["data.limit_val=5: no such file; key=value changes a recipe"]),
    ("engine bad.onnx --batches 1", ["--batches: 1; write three numbers"]),
    ("engine bad.onnx --batches 8,1,2", ["--batches: 8,1,2; allowed: 1 or more, in rising order"]),
    ("sensitivity ok.yaml data.train=null", ["data.train: not given; write data.train=FOLDER"]),
    ("sensitivity ok.yaml --images 0", ["--images: 0; allowed: 1 or more"]),
    ("sensitivity ok.yaml --share nan", ["--share: nan; allowed: above 0 and below 100"]),
    ("sensitivity ok.yaml --treatments magic", ["--treatments: magic; allowed: sparsity, quantization"]),
    ("sensitivity ok.yaml --top -1", ["--top: -1; allowed: 0 or more"]),
    ("sensitivity ok.yaml --picture x.gif", ["--picture: x.gif", ".svg, .png, .pdf"]),
    ("sensitivity ok.yaml --json text.txt/x.json", ["--json: text.txt/x.json", "text.txt is a file"]),
    ("sensitivity nowhere.yaml --json new/x.json", ["nowhere.yaml", *NO_RECIPE]),
    # searching
    ("search ok.yaml --space nowhere.yaml", ["--space: nowhere.yaml: no such file", "{choice: [4, 8]}"]),
    ("search ok.yaml --space folder", ["--space: folder: no such file"]),
    ("search ok.yaml --space empty.yaml", ["empty.yaml: empty; a space names the values"]),
    ("search ok.yaml --space space.yaml --trials 0", ["--trials: 0; allowed: 1 to 1000000"]),
    ("search ok.yaml --space space.yaml --hours nan", ["--hours: nan; allowed: above 0"]),
    ("search ok.yaml --space space.yaml --study x", ["--study: names a study in --storage"]),
    ("search ok.yaml --space space.yaml --objectives taste", ["--objectives: 'taste' is unknown", "accuracy"]),
    ("search ok.yaml --space space.yaml --objectives bytes --dir text.txt", ["--dir: text.txt cannot be written"]),
    ("search ok.yaml --space space.yaml --objectives bytes --dir .", ["--dir: . has files but no search in it"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize(("words", "parts"), CASES, ids=[words for words, _ in CASES])
def test_refused(
    words: str,
    parts: list[str],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    assert not missing(parts, refused(place, shlex.split(words), capsys))


@pytest.mark.parametrize(
    "words",
    [
        "--debug run nowhere.yaml",
        "run --debug nowhere.yaml",
        "run nowhere.yaml --debug",
        "recipes show nowhere --debug",
    ],
)
def test_debug_shows_the_traceback(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    from act.cli.main import main

    assert main(shlex.split(words)) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1].startswith("vitcompress: error: nowhere")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    argv = ["run", str(place / "ok.yaml"), "--dir", str(tmp_path / "closed" / "x")]
    assert "cannot be written" in refused(place, argv, capsys)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("run ok.yaml model.checkpoint=code.bin", ["code.bin: not a readable checkpoint", "could run code"]),
        ("bench bad.xml", ["bad.xml: OpenVINO cannot open it"]),
    ],
)
def test_nothing_else_on_stderr_of_the_process(words: str, parts: list[str], place: Path) -> None:
    """Warnings and what native libraries print, which tests inside one process do not see."""
    before = tree(place)
    argv = [sys.executable, "-m", "act", *shlex.split(words)]
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(argv, cwd=place, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert not missing(parts, the_refusal(done.stderr.splitlines()))
    assert tree(place).keys() == before.keys()
