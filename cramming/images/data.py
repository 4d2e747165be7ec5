"""Images as flat vectors in three splits, from scikit-learn or the hub. Not the training."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from cramming.errors import UserError, one_line
from cramming.images.config import ImagesConfig


@dataclass(frozen=True)
class Split:
    """Images (N, pixels) float32, and their classes (N,) int64."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device) -> "Split":
        """The same on a device."""
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True)
class ImageData:
    """Training, validation and test images, by the training images' mean and deviation; `classes` of them."""

    train: Split
    valid: Split
    test: Split
    classes: int

    @property
    def pixels(self) -> int:
        """Numbers per image."""
        return self.train.x.shape[1]

    def fingerprint(self) -> str:
        """Hash of all images, labels and splits."""
        whole = hashlib.sha256()
        for split in (self.train, self.valid, self.test):
            for tensor in (split.x, split.y):
                whole.update(str(tuple(tensor.shape)).encode() + tensor.cpu().numpy().tobytes())
        return whole.hexdigest()[:16]


def load_images(config: ImagesConfig) -> ImageData:
    """Read and split the configured data set.

    Raises:
        UserError: the hub cannot be reached, or its data set has other columns, splits or shapes than configured.
    """
    if config.source == "digits":
        digits = load_digits()
        x, y = digits.data.astype(np.float32), digits.target.astype(np.int64)
        x, x_test, y, y_test = _held_out(config, "test_share", x, y)
    else:
        x, y = _hub_split(config, "train")
        x_test, y_test = _hub_split(config, "test")
        if x_test.shape[1] != x.shape[1]:
            raise UserError(f"images.id: {config.id} has test images of another size than its training images.")
    x, x_valid, y, y_valid = _held_out(config, "valid_share", x, y)
    # One number each, so that the geometry of the images stays.
    mean, deviation = float(x.mean()), float(x.std()) or 1.0

    def split(images: np.ndarray, labels: np.ndarray) -> Split:
        return Split(torch.from_numpy((images - mean) / deviation).float(), torch.from_numpy(labels))

    classes = 1 + int(max(labels.max() for labels in (y, y_valid, y_test)))
    return ImageData(split(x, y), split(x_valid, y_valid), split(x_test, y_test), classes)


def _held_out(config: ImagesConfig, share: str, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Images and classes in two parts, stratified by class: x, x held out, y, y held out."""
    value = getattr(config, share)
    try:
        return train_test_split(x, y, test_size=value, random_state=config.split_seed, stratify=y)
    except ValueError as error:
        raise UserError(f"images.{share} is {value}: the split is impossible ({error}).") from None


def _hub_split(config: ImagesConfig, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Flat images (N, pixels) float32 and classes (N,) int64 of one split."""
    import datasets

    # The hub's clients raise their own, the operating system's and plain errors, by version: one door translates all.
    try:
        table = datasets.load_dataset(str(config.id), config.config, split=split, revision=config.revision)
    except Exception as error:
        what = one_line(error)
        raise UserError(
            f"images.id: {config.id} (config {config.config}, split {split}) cannot be read ({type(error).__name__}: "
            f"{what}). Check the id and the network, or use images=digits, which needs none."
        ) from error
    for key in ("image_column", "label_column"):
        if getattr(config, key) not in table.column_names:
            raise UserError(
                f"images.{key} is {getattr(config, key)!r}; {config.id} has {', '.join(table.column_names)}."
            )
    where = f"{config.id}, split {split}"
    labels = np.asarray(table[config.label_column])
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise UserError(f"images.label_column: {config.label_column} of {where} holds no class numbers from 0.")
    try:
        images = np.stack([np.asarray(image, dtype=np.float32).ravel() for image in table[config.image_column]])
    except (TypeError, ValueError):
        images = np.empty((0, 0), dtype=np.float32)
    if not images.size or not np.isfinite(images).all():
        raise UserError(f"images.image_column: {config.image_column} of {where} holds no images, or not of one size.")
    return images, labels.astype(np.int64)
