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
    scale: float = 1.0  # least share of the prepared image's area that a random crop takes, before it is resized back


@dataclass
class DataConfig:
    """Images and their preprocessing; every None is resolved from timm's config of the model."""

    train: str | None = None  # folder, tar, `builtin:NAME`, `hfds/NAME` or `wds/NAME`; labels optional
    val: str | None = None  # the same; with labels for top-1, without for agreement with the original
    calibration: str | None = None  # None: images of `train`
    class_map: str | None = None  # text file, line number = index of the head
    batch_size: int = 64  # of scoring, and of training unless TrainConfig.batch_size is given
    workers: int = 2  # processes that read and decode images; 0: none of their own
    calibration_images: int = 256  # for quantisation, unless its section says images
    input_size: list[int] | None = None  # [channels, height, width]
    resize: int | None = None  # shorter side in pixels before the crop, in place of crop_pct
    crop_pct: float | None = None  # side of the crop over the shorter side before it
    crop_mode: str | None = None  # center cuts, squash resizes both sides, border pads
    interpolation: str | None = None  # of resizing
    mean: list[float] | None = None  # subtracted from pixels in 0..1
    std: list[float] | None = None  # they are divided by
    max_bad_images: int = 10  # unreadable images are named and skipped up to this many
    limit_train: int | None = None  # use only so many training images (a seeded choice)
    limit_val: int | None = None  # the same of validation images; the same choice whatever the seed
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class TrainConfig:
    """Recovery training; `stages` overrides any of these for one strategy by its name."""

    epochs: int | None = None  # None: 1, unless train_iter is given
    train_iter: int | None = None  # optimiser steps; excludes epochs
    learning_rate: float = 2e-4  # largest of the schedule
    min_learning_rate: float = 0.0  # with which it ends
    optimizer: str = "adamw"  # any optimiser name of timm
    weight_decay: float = 0.0  # not of biases, norms and learned ranges
    scheduler: str = "cosine"  # how the learning rate falls
    warmup_iter: int = 0  # steps in which it first rises
    range_learning_rate: float | None = None  # of the learned clips and steps; None: learning_rate
    range_weight_decay: float = 0.0  # decay of the learned clips (PACT's regulariser)
    clip_grad: float | None = 1.0  # global gradient norm
    ema_decay: float | None = None  # keep an exponential moving average of the weights and use it
    amp: str = "no"  # bf16: forward passes in bfloat16
    accumulation: int = 1  # micro-batches per optimiser step
    batch_size: int | None = None  # None: data.batch_size
    eval_iter: int | None = None  # evaluate every so many steps; None: only after the stage
    logging_iter: int = 10  # a line and an event every so many steps
    select: str = "last"  # last, or best by the metric among the evaluations
    metric: str | None = None  # top1 or agreement; None: top1 with labels, else agreement
    metric_mode: str = "max"  # max or min: the direction in which the metric is better
    target_metric: float | None = None  # stop the stage as soon as an evaluation reaches this
    origin_metric: float | None = None  # what the input model must score, within origin_tolerance
    origin_tolerance: float = 0.5  # in the metric's own unit (percent for top1)
    save_iter: int = 100  # resumable state every so many steps
    trackers: list[str] = field(default_factory=list)  # accelerate's trackers, e.g. tensorboard
    stages: dict[str, Any] = field(default_factory=dict)  # e.g. {QuantAware: {epochs: 1}}


@dataclass
class TargetConfig:
    """What the run must reach; unmet goals end with exit code 3 and the best artifact kept."""

    max_drop: float | None = None  # points of the metric that may be lost against the original
    min_agreement: float | None = None  # percent of predictions equal to the original's
    latency_ms: float | None = None  # milliseconds of one call of the exported file with `batch` images
    speedup: float | None = None  # against the uncompressed model in the same backend
    bytes: int | None = None  # of the exported file
    macs: int | None = None  # multiply-accumulates of one image, at most
    attempts: int = 3  # runs of the stage that loses too much, each milder than the last, until the goals are met
    backend: str = "onnxruntime"  # runtime that latency and speedup are measured in
    device: str = "cpu"  # that the result is for
    batch: int = 1  # images of a call


@dataclass
class ExportConfig:
    """Files to write."""

    formats: list[str] = field(default_factory=lambda: ["onnx"])  # onnx, and others made from it
    opset: int = 20  # of the ONNX files
    benchmark: bool = True  # time the exported file against the baseline
    benchmark_batches: list[int] = field(default_factory=lambda: [1, 8])  # batch sizes that are timed
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

    name: str = "recipe"  # of the recipe and its run folder, runs/NAME; left out: the file's name
    description: str = ""  # one line for `vitcompress recipes ls`
    schema: int = 1  # version of this format
    seed: int = 0  # of every random choice
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    strategies: dict[str, Any] = field(default_factory=dict)
    train: TrainConfig = field(default_factory=TrainConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    results: dict[str, Any] = field(default_factory=dict)  # measured results, see results.py; never read by a run
