"""PaddleSlim ACT spellings: translated where they mean the same, otherwise refused with what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from act.errors import InputError
from act.recipe.load import Loaded, read_recipe

M = "model: {name: vit_tiny_patch16_224}\n"


def read(folder: Path, body: str, *overrides: str) -> Loaded:
    path = folder / "r.yaml"
    path.write_text(M + body, encoding="utf-8")
    return read_recipe(path, overrides)


def test_section_names(tmp_path: Path) -> None:
    loaded = read(tmp_path, "ASPPrune: {}\nQuantization: {weight_bits: 6}\n", "Quantization.activation_bits=7")
    assert list(loaded.recipe.strategies) == ["Prune", "QuantAware"]
    config = loaded.recipe.strategies["QuantAware"]
    assert (config.weight_bits, config.activation_bits) == (6, 7)


def test_op_types(tmp_path: Path) -> None:
    body = "QuantAware: {quantize_op_types: [conv2d, depthwise_conv2d, mul, matmul_v2]}\n"
    loaded = read(tmp_path, body)
    assert loaded.recipe.strategies["QuantAware"].quantize_op_types == ["conv2d", "linear", "matmul"]
    assert any("matmul_v2 is read as linear and matmul" in note for note in loaded.notes)
    assert read(tmp_path, "QuantAware: {quantize_op_types: [linear]}\n").notes == []


def test_the_vit_recipe_of_act_reads_after_naming_nodes(tmp_path: Path) -> None:
    """The shape of ACT's own ViT example, with a module name in place of the Paddle variable."""
    loaded = read(
        tmp_path,
        """\
Distillation: {alpha: 1.0, loss: l2, node: [blocks.11]}
QuantAware:
  use_pact: true
  weight_bits: 8
  activation_bits: 8
  weight_quantize_type: channel_wise_abs_max
  not_quant_pattern: [skip_quant]
  quantize_op_types: [conv2d, matmul_v2]
TrainConfig:
  epochs: 1
  eval_iter: 500
  learning_rate: {type: CosineAnnealingDecay, learning_rate: 0.015, T_max: 5000}
  optimizer_builder: {optimizer: {type: Momentum}, weight_decay: 0.00002}
  origin_metric: 81.89
""",
    )
    train = loaded.recipe.train
    assert (train.learning_rate, train.scheduler, train.optimizer, train.weight_decay) == (
        0.015,
        "cosine",
        "momentum",
        2e-5,
    )
    assert train.origin_metric == 81.89 and loaded.recipe.strategies["Distillation"].node == ["blocks.11"]
    assert len(loaded.notes) == 5  # op type, two fields that can go, T_max, the optimiser


def test_training_forms_of_a_stage(tmp_path: Path) -> None:
    rate = "{type: CosineAnnealingDecay, learning_rate: 0.015}"
    body = f"Quantization: {{}}\nTrainConfig: {{stages: {{Quantization: {{epochs: 2, learning_rate: {rate}}}}}}}\n"
    recipe = read(tmp_path, body).recipe
    assert recipe.train.stages == {"QuantAware": {"epochs": 2, "learning_rate": 0.015, "scheduler": "cosine"}}


def test_training_forms(tmp_path: Path) -> None:
    builder = "optimizer: {type: AdamW}, regularizer: {type: L2Decay, coeff: 0.1}, "
    builder += "grad_clip: {type: ClipGradByGlobalNorm, clip_norm: 2}"
    rate = "{type: PolynomialDecay, learning_rate: 1e-3, decay_steps: 9, end_lr: 1e-6, power: 1}"
    train = read(tmp_path, f"TrainConfig:\n  learning_rate: {rate}\n  optimizer_builder: {{{builder}}}\n").recipe.train
    assert (train.optimizer, train.weight_decay, train.clip_grad) == ("adamw", 0.1, 2.0)
    assert (train.scheduler, train.learning_rate, train.min_learning_rate) == ("linear", 1e-3, 1e-6)


def test_post_training_quantisation(tmp_path: Path) -> None:
    loaded = read(tmp_path, "QuantPost: {algo: hist, hist_percent: 0.9995}\n")
    config = loaded.recipe.strategies["QuantPost"]
    assert config.calibration == "percentile" and config.percentile == pytest.approx(99.95)
    assert read(tmp_path, "QuantPost: {algo: KL}\n").recipe.strategies["QuantPost"].calibration == "entropy"


REFUSED: dict[str, tuple[str, list[str]]] = {
    "Global": ("Global: {model_dir: ./m}\n", ["Global", "model: {name: TIMM_NAME, checkpoint: FILE}"]),
    "several teachers": ("MultiTeacherDistillation: {}\n", ["write Distillation"]),
    "search": ("HyperParameterOptimization: {}\n", ["write QuantPost"]),
    "channels": ("ChannelPrune: {pruned_ratio: 0.5}\n", ["write Prune"]),
    "unstructured": ("UnstructurePrune: {ratio: 0.5}\n", ["write Prune"]),
    "ratio": ("Prune: {pruned_ratio: 0.5}\n", ["Prune.pruned_ratio", '`pattern: "2:4"`']),
    "parameters": ("ASPPrune: {prune_params_name: [conv1]}\n", ["prune_params_name", "include: [GLOB]"]),
    "variable": (
        "Distillation: {node: [softmax_12.tmp_0]}\n",
        ["'softmax_12.tmp_0' is a Paddle variable name", "nodes MODEL"],
    ),
    "variable alone": ("Distillation: {node: linear_5.w_0}\n", ["Paddle variable name"]),
    "teacher": (
        "Distillation: {teacher_model_dir: ./m}\n",
        ["teacher_model_dir", "leave it out for the original model"],
    ),
    "onnx format": ("QuantAware: {onnx_format: true}\n", ["QuantAware.onnx_format", "export: {formats: [onnx]}"]),
    "TensorRT": ("QuantAware: {for_tensorrt: true}\n", ["export: {formats: [onnx, tensorrt]}"]),
    "observer": ("QuantAware: {activation_quantize_type: abs_max}\n", ["ranges start from calibration"]),
    "per tensor weights": ("QuantAware: {weight_quantize_type: abs_max}\n", ["allowed: 'channel_wise_abs_max'"]),
    "skip pattern": ("QuantAware: {not_quant_pattern: [head]}\n", ["not_quant_pattern"]),
    "batches": ("QuantPost: {batch_nums: 10}\n", ["write images"]),
    "average": ("QuantPost: {algo: avg}\n", ["known: hist, KL, mse, abs_max", "write calibration"]),
    "algorithm twice": ("QuantPost: {algo: KL, calibration: mse}\n", ["given as calibration as well"]),
    "piecewise": (
        "TrainConfig: {learning_rate: {type: PiecewiseDecay, values: [1, 2]}}\n",
        ["TrainConfig.learning_rate", "write learning_rate as a number"],
    ),
    "rate missing": ("TrainConfig: {learning_rate: {type: CosineAnnealingDecay}}\n", ["without its learning_rate"]),
    "plain SGD": ("TrainConfig: {optimizer_builder: {optimizer: {type: SGD}}}\n", ["write optimizer: momentum"]),
    "unknown optimiser": ("TrainConfig: {optimizer_builder: {optimizer: {type: Foo}}}\n", ["'Foo'", "AdamW"]),
    "optimiser twice": (
        "TrainConfig: {optimizer: lamb, optimizer_builder: {optimizer: {type: AdamW}}}\n",
        ["TrainConfig.optimizer: given both"],
    ),
    "L1": ("TrainConfig: {optimizer_builder: {regularizer: {type: L1Decay, coeff: 1}}}\n", ["write weight_decay"]),
    "mixed precision in a stage": (
        "QuantAware: {}\nTrainConfig: {stages: {QuantAware: {amp_config: {}}}}\n",
        ["TrainConfig.stages.QuantAware.amp_config", "write `amp: bf16`"],
    ),
    "mixed precision": ("TrainConfig: {amp_config: {}}\n", ["write `amp: bf16`"]),
    "sharding": ("TrainConfig: {sharding_config: {}}\n", ["accelerate launch"]),
    "sparse model": ("TrainConfig: {sparse_model: true}\n", ["masks hold in every stage"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_carry_over_says_what_to_write(case: str, tmp_path: Path) -> None:
    body, parts = REFUSED[case]
    with pytest.raises(InputError) as caught:
        read(tmp_path, body)
    assert len(caught.value.problems) == 1, caught.value.problems
    assert all(part in caught.value.problems[0] for part in parts), caught.value.problems
