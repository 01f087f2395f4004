"""One measurement from its options to its result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from act.bench.profile import NodeTime, by_kind, by_operator, profile
from act.bench.sources import Source, common_input_size, find_sources
from act.bench.timing import WARM_UP, Row, measure, noise, shaky
from act.bench.variants import Opened, choose_backends, open_variants
from act.errors import InputError
from act.run.environment import describe

if TYPE_CHECKING:
    from act.data.bundle import DataBundle
    from act.recipe.schema import Recipe

SCHEMA = 1


@dataclass(frozen=True)
class Options:
    """What to measure; the fields are those of the command line."""

    files: list[Path]
    baseline: Path | None = None
    batches: list[int] = field(default_factory=lambda: [1, 8])
    backends: list[str] | None = None
    threads: int = 0
    repeats: int = 20
    half: bool = False
    recipe: str | None = None
    overrides: list[str] = field(default_factory=list)
    profile: bool = False
    picture: bool = False


@dataclass
class Bench:
    """What was measured. `profiles` are node times by variant at the first batch size."""

    sources: list[Source]
    opened: Opened
    rows: list[Row]
    batches: list[int]
    repeats: int
    threads_asked: int
    input_size: tuple[int, int, int]
    environment: dict[str, Any]
    unsteady: list[str]
    profiles: dict[str, list[NodeTime]] = field(default_factory=dict)

    @property
    def cpu(self) -> str:
        """The processor, its features for integers and bf16, and the GPUs if there are any."""
        features = [name for name in self.environment["cpu_features"] if name not in ("avx2", "avx512f", "avx512bw")]
        return ", ".join([" ".join([self.environment["cpu"], *features]), *self.environment["gpus"]])

    @property
    def threads(self) -> str:
        """How many threads the runtimes were given, in words."""
        count = self.threads_asked or self.environment["cores"]["usable"]
        return f"{count} thread{'s' if count > 1 else ''}"

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        half: dict[str, Any] = {name: {"precision": found} for name, found in self.opened.half.items()}
        half |= {name: {"precision": None, "reason": reason} for name, reason in self.opened.no_half.items()}
        return {
            "schema": SCHEMA,
            "environment": self.environment,
            "threads": self.threads_asked or self.environment["cores"]["usable"],
            "rounds": self.repeats,
            "warm_up": WARM_UP,
            "input_size": list(self.input_size),
            "files": [source.as_json() for source in self.sources],
            "half_precision": half,
            "results": [row.as_json() for row in self.rows],
            "left_out": [{"what": what, "reason": reason} for what, reason in self.opened.skipped],
            "unsteady": self.unsteady,
            "profile": {
                name: {
                    "batch": self.batches[0],
                    "shares": by_kind(nodes),
                    "operators": [asdict(item) for item in by_operator(nodes)],
                    "nodes": [asdict(node) for node in nodes],
                }
                for name, nodes in self.profiles.items()
            },
        }


def run_bench(options: Options) -> Bench:
    """Open, score, time and profile.

    Raises:
        InputError: files, backends or the recipe cannot be used, or a picture is asked for and no accuracy is known.
    """
    sources = find_sources(options.files, options.baseline)
    names, missing = choose_backends(options.backends)
    size = common_input_size(sources)
    data = None if options.recipe is None else _data(options.recipe, options.overrides, size)
    opened = open_variants(sources, names, options.threads, options.half)
    opened.skipped[:0] = missing
    if data is not None:
        from act.bench.score import score

        bundle, recipe = data
        score(opened, bundle.val(recipe.data.batch_size))
    if options.picture and not any(variant.figures for variant in opened.variants):
        raise InputError("--picture: no accuracy is known; name a finished run folder, or give --recipe to score")
    rows = measure(opened, options.batches, size, options.repeats)
    profiles = {}
    for variant in opened.variants if options.profile else []:
        nodes = profile(variant, noise(options.batches[0], size), options.threads)
        if nodes is None:
            opened.skipped.append((f"profile of {variant.name}", "this backend reports no times of operators"))
        else:
            profiles[variant.name] = nodes
    return Bench(
        sources,
        opened,
        rows,
        options.batches,
        options.repeats,
        options.threads,
        size,
        describe(),
        shaky(rows),
        profiles,
    )


def _data(name: str, overrides: list[str], size: tuple[int, int, int]) -> tuple[DataBundle, Recipe]:
    """The recipe and its validation images, prepared as its model wants them."""
    from act.data.bundle import DataBundle
    from act.data.preprocess import resolve_preprocess
    from act.models import load_model
    from act.recipe.load import load_recipe

    recipe = load_recipe(name, overrides)
    if recipe.data.val is None:
        raise InputError(f"{name}: data.val: not given; write data.val=FOLDER after the files")
    recipe.data.train = recipe.data.calibration = None  # only val is read here, so the others need not be there
    preprocess = resolve_preprocess(load_model(recipe.model), recipe.data)
    if preprocess.input_size != size:
        shown = "x".join(map(str, preprocess.input_size))
        raise InputError(f"{name}: its images are {shown}, the files take {'x'.join(map(str, size))}")
    return DataBundle(recipe.data, preprocess, recipe.seed), recipe
