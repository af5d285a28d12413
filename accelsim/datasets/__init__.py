"""Data sets: scikit-learn's digits, others that are made on the spot, npz files, and folders of images; with what
an image should give, and their normalisation.

``open`` reads what a ``Spec`` says, ``load`` the same from arguments. Nothing is dropped, clipped or renumbered without a
word: what cannot be used is a DataError that names it, what is left aside on purpose is in ``Dataset.notes``.
"""

from accelsim.datasets.classlist import class_list
from accelsim.datasets.dataset import DataError, Dataset, Int64, spread
from accelsim.datasets.loading import IMAGENET_MEAN, IMAGENET_STD, load, open
from accelsim.datasets.made import is_made
from accelsim.datasets.spec import DIGITS, Spec, arguments, spec_of

__all__ = [
    "DIGITS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "DataError",
    "Dataset",
    "Int64",
    "Spec",
    "arguments",
    "class_list",
    "is_made",
    "load",
    "open",
    "spec_of",
    "spread",
]
