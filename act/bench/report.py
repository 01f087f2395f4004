"""One measurement from its options to its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from act.bench.data import BenchData
from act.bench.peers import PEERS, make_peers, peer_name
from act.bench.profile import NodeTime, by_kind, by_operator, profile
from act.bench.sources import Source, common_input_size, find_sources
from act.bench.timing import Row, measure, shaky
from act.bench.variants import Opened, choose_backends, open_variants
from act.errors import InputError
from act.run.environment import describe
from act.run.timing import WARM_UP, noise

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
    peers: list[str] = field(default_factory=list)
    folder: Path = Path()  # where the peers' files go


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
    peers: list[str] = field(default_factory=list)

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
            "peers": {name: PEERS[name].settings for name in self.peers},
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


def run_bench(options: Options, say: Callable[[str], None] = lambda text: None) -> Bench:
    """Open, score, time and profile; `say` is told what takes long.

    Raises:
        InputError: files, backends or the recipe cannot be used, or a picture is asked for and no accuracy is known.
    """
    sources = find_sources(options.files, options.baseline)
    names, missing = choose_backends(options.backends)
    size = common_input_size(sources)
    recipe = options.recipe or (_run_recipe(options.files) if options.peers else None)
    data = None if recipe is None else BenchData(recipe, options.overrides, size, calibration=bool(options.peers))
    skipped = list(missing)
    if options.peers and data is not None:
        sources = sources + make_peers(options.peers, sources, data.calibration(), options.folder, skipped, say)
    opened = open_variants(sources, names, options.threads, options.half)
    opened.skipped[:0] = skipped
    if data is not None:
        from act.bench.score import score

        score(opened, data.val())
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
        [name for name in options.peers if any(source.name == peer_name(name) for source in sources)],
    )


def _run_recipe(files: list[Path]) -> str:
    """The recipe of the first run folder, whose images the peers get."""
    for path in files:
        if (path / "recipe.yaml").is_file():
            return str(path / "recipe.yaml")
    raise InputError("--peers: no images to calibrate and score with; give --recipe, or name a finished run folder")
