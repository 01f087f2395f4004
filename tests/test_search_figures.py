"""Which trial of a search is the best, and what its report shows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from act.errors import InputError
from act.recipe.load import recipe_from_dict
from act.recipe.schema import Recipe
from act.search.figures import Trial, best, check_objectives, default_objectives, front, violations
from act.search.report import short
from act.search.study import without_password

pytest.importorskip("optuna")


def trial(
    number: int, state: str = "met", goals: dict[str, tuple[float, float]] | None = None, **figures: float
) -> Trial:
    listed = [{"key": key, "limit": limit, "measured": value} for key, (limit, value) in (goals or {}).items()]
    return Trial(number, state, {}, {"metric": "top1", **figures}, {}, listed, "", {}, "", 0.0)


def target(**values: float) -> Recipe:
    return recipe_from_dict({"target": values})


def test_of_trials_that_meet_the_target_what_it_does_not_limit_decides() -> None:
    trials = [trial(0, accuracy=90.0, latency=5.0), trial(1, accuracy=92.0, latency=7.0), trial(2, "failed")]
    names = ["accuracy", "latency"]
    for limits, expected in (
        ({"max_drop": 3}, 0),
        ({"latency_ms": 9}, 1),
        ({"max_drop": 3, "latency_ms": 9}, 1),
        ({}, 1),
    ):
        chosen = best(trials, names, target(**limits))
        assert chosen is not None and chosen.number == expected, limits
    assert best([trial(0, "failed"), trial(1, "running")], names, target()) is None


def test_of_trials_that_all_miss_the_one_that_misses_by_least() -> None:
    trials = [
        trial(0, "missed", {"max_drop": (1.0, 3.0), "speedup": (2.0, 2.5)}, accuracy=90.0, latency=4.0),
        trial(1, "missed", {"max_drop": (1.0, 0.5), "speedup": (2.0, 1.0)}, accuracy=95.0, latency=9.0),
    ]
    chosen = best(trials, ["accuracy", "latency"], target(max_drop=1.0, speedup=2.0))
    assert violations(trials[0].goals) == {"max_drop": 2.0, "speedup": -0.25}
    assert violations(trials[1].goals) == {"max_drop": -0.5, "speedup": 0.5}
    assert chosen is trials[1]
    assert violations(trial(0, goals={"max_drop": (0.0, 0.3)}).goals) == {"max_drop": 0.3}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
@settings(deadline=None)
def test_the_front_is_what_nothing_surpasses(values: list[tuple[int, int]]) -> None:
    trials = [trial(number, accuracy=float(a), latency=float(b)) for number, (a, b) in enumerate(values)]
    kept = front(trials, ["accuracy", "latency"], target())
    points = set(values)
    expected = {p for p in points if not any(q != p and q[0] >= p[0] and q[1] <= p[1] for q in points)}
    assert {(int(t.figures["accuracy"]), int(t.figures["latency"])) for t in kept} == expected
    assert len(kept) == len(expected)  # of equal ones only the first


def test_objectives_follow_the_target() -> None:
    assert default_objectives(target()) == ["accuracy", "latency"]
    assert default_objectives(target(max_drop=1, speedup=1.5)) == ["accuracy", "speedup"]
    assert default_objectives(target(min_agreement=95, bytes=1000)) == ["agreement", "bytes"]
    with pytest.raises(InputError, match=r"accuracy needs data\.val"):
        check_objectives(["accuracy"], target())


def test_short_names_of_keys_differ() -> None:
    assert short(["Prune", "Prune.criterion", "TrainConfig.epochs", "TrainConfig.stages.Prune.epochs"]) == [
        *("Prune", "criterion", "TrainConfig.epochs", "Prune.epochs")
    ]


def test_passwords_are_not_shown() -> None:
    assert without_password("mysql://me:pw@db:33/x?pw=1") == "mysql://me:...@db:33/x?pw=1"
    assert without_password("sqlite:///a.db") == "sqlite:///a.db"
    assert without_password("mysql://me:pw@[db/x") == "mysql://me:...@[db/x"
