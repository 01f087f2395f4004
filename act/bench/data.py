"""The images of a recipe, as files are scored and other tools calibrated with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from act.backends.base import Images
from act.errors import InputError

if TYPE_CHECKING:
    from act.data.batch import Batch


class BenchData:
    """Validation images of the recipe `name`, and with `calibration` those that its own calibration would take.

    Raises:
        InputError: the recipe names no such images, or prepares them for another size than [channels, height, width].
    """

    def __init__(self, name: str, overrides: list[str], size: tuple[int, int, int], calibration: bool) -> None:
        from act.data.bundle import DataBundle
        from act.data.preprocess import resolve_preprocess
        from act.models import load_model
        from act.recipe.load import load_recipe

        self.recipe = load_recipe(name, overrides)
        data = self.recipe.data
        if data.val is None:
            raise InputError(f"{name}: data.val: not given; write data.val=FOLDER after the files")
        if calibration and data.train is None and data.calibration is None:
            raise InputError(f"{name}: data.calibration: not given; the peers need images to calibrate with")
        if not calibration:
            data.train = data.calibration = None  # only val is read, so the others need not be there
        preprocess = resolve_preprocess(load_model(self.recipe.model), data)
        if preprocess.input_size != size:
            shown = "x".join(map(str, preprocess.input_size))
            raise InputError(f"{name}: its images are {shown}, the files take {'x'.join(map(str, size))}")
        self._bundle = DataBundle(data, preprocess, self.recipe.seed)

    def val(self) -> Iterable[Batch]:
        """All validation batches."""
        return self._bundle.val(self.recipe.data.batch_size)

    def calibration(self) -> list[Images]:
        """As many images, float32 [1, C, H, W] each, as the recipe's quantisation takes, and the same ones."""
        own = [getattr(config, "images", None) for config in self.recipe.strategies.values()]
        count = next((number for number in own if number), self.recipe.data.calibration_images)
        batches = self._bundle.calibration(count, self.recipe.data.batch_size)
        return [image for batch in batches for image in batch.images.numpy(force=True)[:, None]]
