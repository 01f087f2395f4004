"""The recipe as a tree of dataclasses: every section that is not a strategy.

A strategy's own section is the dataclass `Config` of its class in `act/strategies/`. Field comments are
the reference text that `vitcompress recipes show` and the documentation print.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class ModelConfig:
    """The model to compress."""

    name: str | None = None  # timm model name; may be left out when a module is passed through Python
    checkpoint: str | None = None  # .safetensors, or a torch file (read with weights_only)
    pretrained: bool = False  # timm's own weights (needs the network or a filled cache)
    num_classes: int | None = None  # None: what the checkpoint's head, else timm's default, says
    kwargs: dict[str, Any] = field(default_factory=dict)  # further plain values for timm.create_model


@dataclass
class AugmentConfig:
    """Training augmentation, the same for teacher and student."""

    hflip: float = 0.5  # probability of a horizontal flip
    shift: int = 0  # random shift of up to so many pixels in x and y, edges repeated


@dataclass
class DataConfig:
    """Images and their preprocessing; every None is resolved from timm's config of the model."""

    train: str | None = None  # folder, tar, `builtin:NAME`, `hfds/NAME` or `wds/NAME`; labels optional
    val: str | None = None  # the same; with labels for top-1, without for agreement with the original
    calibration: str | None = None  # None: images of `train`
    class_map: str | None = None  # text file, line number = index of the head
    batch_size: int = 64
    workers: int = 2
    calibration_images: int = 256
    input_size: list[int] | None = None  # [channels, height, width]
    resize: int | None = None  # shorter side in pixels before the crop; overrides crop_pct
    crop_pct: float | None = None
    crop_mode: str | None = None  # center, squash or border
    interpolation: str | None = None  # nearest, bilinear, bicubic, lanczos
    mean: list[float] | None = None
    std: list[float] | None = None
    max_bad_images: int = 10  # unreadable images are named and skipped up to this many
    limit_train: int | None = None  # use only so many training images (a seeded choice)
    limit_val: int | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class TrainConfig:
    """Recovery training; `stages` overrides any of these for one strategy by its name."""

    epochs: int | None = None  # None: 1, unless train_iter is given
    train_iter: int | None = None  # optimiser steps; excludes epochs
    learning_rate: float = 2e-4
    min_learning_rate: float = 0.0
    optimizer: str = "adamw"  # any optimiser name of timm
    weight_decay: float = 0.0
    scheduler: str = "cosine"  # cosine, linear, constant
    warmup_iter: int = 0
    range_learning_rate: float | None = None  # of the learned clips and steps; None: learning_rate
    range_weight_decay: float = 0.0  # decay of the learned clips (PACT's regulariser)
    clip_grad: float | None = 1.0  # global gradient norm
    ema_decay: float | None = None  # keep an exponential moving average of the weights and use it
    amp: str = "no"  # no or bf16
    accumulation: int = 1  # micro-batches per optimiser step
    batch_size: int | None = None  # None: data.batch_size
    eval_iter: int | None = None  # evaluate every so many steps; None: only after the stage
    logging_iter: int = 10
    select: str = "last"  # last, or best by the metric among the evaluations
    metric: str | None = None  # top1 or agreement; None: top1 with labels, else agreement
    metric_mode: str = "max"  # max or min: the direction in which the metric is better
    target_metric: float | None = None  # stop the stage as soon as an evaluation reaches this
    origin_metric: float | None = None  # what the input model must score, within origin_tolerance
    origin_tolerance: float = 0.5  # in the metric's own unit (percent for top1)
    save_iter: int = 100  # resumable state every so many steps
    trackers: list[str] = field(default_factory=list)  # accelerate's trackers, e.g. tensorboard
    stages: dict[str, Any] = field(default_factory=dict)


@dataclass
class TargetConfig:
    """What the run must reach; unmet goals end with exit code 3 and the best artifact kept."""

    max_drop: float | None = None  # points of the metric that may be lost against the original
    min_agreement: float | None = None  # percent of predictions equal to the original's
    latency_ms: float | None = None
    speedup: float | None = None  # against the uncompressed model in the same backend
    bytes: int | None = None  # of the exported file
    macs: int | None = None  # multiply-accumulates of one image, at most
    attempts: int = 3  # runs of the stage that loses too much, each milder than the last, until the goals are met
    backend: str = "onnxruntime"
    device: str = "cpu"
    batch: int = 1


@dataclass
class ExportConfig:
    """Files to write."""

    formats: list[str] = field(default_factory=lambda: ["onnx"])
    opset: int = 20
    benchmark: bool = True  # time the exported file against the baseline
    benchmark_batches: list[int] = field(default_factory=lambda: [1, 8])
    threads: int = 0  # intra-op threads of the runtime when timing and scoring; 0: all cores
    max_abs_diff: float | None = None  # parity limit against torch; None: judged by agreement only
    # Percent of validation predictions that must equal the torch model's. Not 100: last-bit differences flip integer
    # codes, and later layers amplify them, so two exact runtimes differ by about as much as quantisation itself does.
    min_agreement: float = 90.0
    # In files for one runtime, of a recipe that quantises matmul: how attention products run. auto: the faster here.
    attention: str = "auto"  # auto, int8, float
    # In OpenVINO's file: append zero tokens, which no attention sees, up to a multiple of 8. auto: if faster here.
    pad_tokens: Literal["auto", True, False] = "auto"


@dataclass
class Recipe:
    """A validated recipe. `strategies` maps a strategy's name to its own config dataclass."""

    name: str = "recipe"
    description: str = ""
    schema: int = 1
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    strategies: dict[str, Any] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    results: dict[str, Any] = field(default_factory=dict)  # measured results, see results.py; never read by a run
