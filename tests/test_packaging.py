"""The wheel's list of packages is written out, since mapped folders cannot be found; it must name every package."""

import configparser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_package_is_listed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in ROOT.glob("act/**/__init__.py")}
    assert listed == found | {"act.configs", "act.recipes"}


def test_every_recipe_and_group_matches_the_package_data() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    data = config["options.package_data"]
    assert "*/*.yaml" in data["act.configs"] and "*.yaml" in data["*"]
    assert list(ROOT.glob("configs/*/*.yaml")) and list(ROOT.glob("recipes/*.yaml"))
    assert not [path for path in ROOT.glob("configs/*/*") if path.suffix != ".yaml"]
