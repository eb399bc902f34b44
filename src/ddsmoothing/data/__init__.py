"""Labelled inputs by name: the shipped sample, npz files, and folders of the field's data sets.

They know no models. Files are data: nothing in them is executed. Nothing is fetched unless that is asked for.
"""

from ddsmoothing.data.arrays import read_idx
from ddsmoothing.data.augment import augmentation
from ddsmoothing.data.dataset import Dataset, as_dataset
from ddsmoothing.data.images import load_image
from ddsmoothing.data.load import FOLDERS, SHIPPED, load_data

__all__ = ["FOLDERS", "SHIPPED", "Dataset", "as_dataset", "augmentation", "load_data", "load_image", "read_idx"]
