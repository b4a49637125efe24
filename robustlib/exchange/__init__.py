"""Corrupted images as files, in the layouts of CIFAR-10-C and ImageNet-C, and back.

`export_cifar_c` and `export_imagenet_c` write them for other tools, and so does the command
`python -m robustlib.exchange my/images my-images-c`. `Stored` evaluates files in either layout
here, the official releases among them. `Benchmark` is a benchmark of corruptions as a small file.
"""

from robustlib.exchange.benchmark import Benchmark
from robustlib.exchange.files import MANIFEST
from robustlib.exchange.reading import Stored, stored_names, stored_places
from robustlib.exchange.writing import export_cifar_c, export_imagenet_c

__all__ = [
    "MANIFEST",
    "Benchmark",
    "Stored",
    "export_cifar_c",
    "export_imagenet_c",
    "stored_names",
    "stored_places",
]
