"""Build the embedded default of ``vitcompress run quickstart``: the digits and a small ViT trained on them.

    pip install scikit-learn && python scripts/make_quickstart.py

Writes ``act/assets/digits.tar`` (real 8 x 8 grey images, stratified into ``train/<class>/`` and ``val/<class>/``) and
``act/assets/digits_vit.safetensors`` (an unmodified timm ViT). ``--images-only`` leaves the checkpoint alone.

The images are scikit-learn's ``load_digits``, which is the test part of "Optical Recognition of Handwritten Digits"
(E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, CC BY 4.0); see ``act/assets/digits.LICENSE.md``.
scikit-learn is needed by this script only, never by the package.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import time
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

ASSETS = Path(__file__).resolve().parent.parent / "act" / "assets"
ARCHITECTURE = "vit_tiny_patch16_224"
# Every linear layer is a multiple of 16 both ways, so that the alignment rules of 2:4 and int8 kernels leave none out.
MODEL_ARGS = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3, "num_classes": 10}
VAL_SHARE = 0.2


def split_digits(seed: int = 0) -> dict[str, tuple[NDArray[np.uint8], int]]:
    """Archive name -> (8-bit grey image [8, 8], label), stratified by class, in sorted order.

    The number in a name is the image's position in ``load_digits``, so each file can be traced back to its source.
    """
    digits = load_digits()
    rng = np.random.default_rng(seed)
    images: dict[str, tuple[NDArray[np.uint8], int]] = {}
    for label in range(10):
        members = rng.permutation(np.flatnonzero(digits.target == label))
        val_count = round(VAL_SHARE * len(members))
        for position, index in enumerate(members):
            split = "val" if position < val_count else "train"
            # The source counts black pixels of a 4 x 4 cell, 0 to 16; 255/16 spreads that over the 8-bit range.
            grey = np.rint(digits.images[index] * (255 / 16)).astype(np.uint8)
            images[f"{split}/{label}/{index:04d}.png"] = (grey, label)
    return dict(sorted(images.items()))


def write_tar(images: dict[str, tuple[NDArray[np.uint8], int]], path: Path) -> None:
    """Write the images as PNGs into one tar whose bytes do not depend on who builds it, or when."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, (grey, _) in images.items():
            png = io.BytesIO()
            # Stored, not deflated: a tar pads every member to 512 bytes anyway, and zlib's output differs by version.
            Image.fromarray(grey).save(png, "PNG", compress_level=0)
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = len(png.getvalue()), 0, 0o644
            png.seek(0)
            archive.addfile(member, png)


def load_split(images: dict[str, tuple[NDArray[np.uint8], int]], split: str) -> tuple[Tensor, Tensor]:
    """Images float32 [N, 3, 32, 32] as the recipe preprocesses them (bilinear, mean = std = 0.5), labels [N]."""
    chosen = [item for name, item in images.items() if name.startswith(split)]
    resized = [Image.fromarray(grey).resize((32, 32), Image.Resampling.BILINEAR) for grey, _ in chosen]
    pixels = torch.from_numpy(np.stack([np.asarray(image, np.float32) for image in resized])) / 255
    labels = torch.tensor([label for _, label in chosen])
    return ((pixels - 0.5) / 0.5).unsqueeze(1).expand(-1, 3, -1, -1).contiguous(), labels


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate by up to 12 degrees, scale by up to 12 %, shift by up to 3 of the 32 pixels, filling up with paper."""
    count = len(images)
    uniform = torch.rand(4, count, generator=generator) * 2 - 1
    angle, zoom, shift = uniform[0] * 0.21, 1 + uniform[1] * 0.12, uniform[2:] * (3 / 16)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    theta = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    # The border of a digit is empty, which is -1 after normalisation, while grid_sample pads with zero.
    return functional.grid_sample(images + 1, grid, align_corners=False) - 1


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 in percent."""
    model.eval()
    with torch.inference_mode():
        return 100 * float((model(images).argmax(1) == labels).float().mean())


def train(images: Tensor, labels: Tensor, epochs: int, seed: int = 0, batch_size: int = 64) -> nn.Module:
    """Train the ViT from scratch: AdamW, one warm-up-and-cosine cycle, label smoothing. Never sees the val images."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = timm.create_model(ARCHITECTURE, pretrained=False, **MODEL_ARGS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * -(-len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.5e-3, total_steps=steps, pct_start=0.15)
    for epoch in range(epochs):
        model.train()
        started, total = time.perf_counter(), 0.0
        for index in torch.randperm(len(images), generator=generator).split(batch_size):
            logits = model(jitter(images[index], generator))
            loss = functional.cross_entropy(logits, labels[index], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(index)
        print(f"epoch {epoch + 1}/{epochs}  loss {total / len(images):.4f}  {time.perf_counter() - started:.1f} s")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--images-only", action="store_true", help="write digits.tar and stop")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    images = split_digits()
    write_tar(images, args.out / "digits.tar")
    if args.images_only:
        return
    train_set, val_set = load_split(images, "train/"), load_split(images, "val/")
    print(f"{len(train_set[1])} training images, {len(val_set[1])} validation images")
    model = train(*train_set, epochs=args.epochs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters} parameters, top-1 on val {accuracy(model, *val_set):.2f} %")
    save_file(model.state_dict(), args.out / "digits_vit.safetensors", metadata={"architecture": ARCHITECTURE})


if __name__ == "__main__":
    main()
