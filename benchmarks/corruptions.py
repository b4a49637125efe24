"""Speed of the nineteen corruptions of ImageNet-C beside other packages: part of `make bench`.

Beside imagecorruptions 1.1.2 (2020), corrupt-tta 0.1.7 (2026) and torch-uncertainty 0.13, each
limited to as many threads as ours. All get the same pixels and the severities published for
224 px, which are all that they have, and take turns: ours a batch, the others one image after
another, as one does, or a batch where they take one. Each time is a mean over the five severities
of medians over the turns. `times_faster` is the ratio to the faster of imagecorruptions and
corrupt-tta. torch-uncertainty, which lacks spatter, stands beside them: its brightness, saturate,
motion_blur and glass_blur are other, cheaper rules under the same name.

Each package runs in an environment of its own, which is made on the first run; imagecorruptions
asks for Python 3.11. A package that can't be had is left out. Close other programs first.

The bandwidth column sets our time beside that of copying the batch once, at the rate measured
for a large tensor: what a corruption that does nothing but read and write would reach.

The table goes to `results/speed.csv`, what it was measured on to `results/speed.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from robustlib import corruptions, data
from robustlib.core import paths
from robustlib.core.devices import DEVICES, pick_device
from robustlib.study.results import provenance

BATCHES = {32: 256, 224: 32}  # image side -> images
SEVERITIES_FOR = 224
THREADS = (1, 2)
TURNS = 3
THEIR_SECONDS = 0.03  # at least one call for each severity and turn, and no more in this time

WORKER = Path(__file__).with_name("peer_worker.py")
WHY_SLOWER = {"jpeg_compression": "libjpeg in both; ours also converts floats to 8 bits and back"}


@dataclass(frozen=True)
class Peer:
    """A package to compare with.

    pins: what is installed, without resolving if `complete`. python: the interpreter that its
    environment is made with. comparable: whether `times_faster` counts it.
    """

    pins: tuple[str, ...]
    python: str = sys.executable
    complete: bool = True
    comparable: bool = True


# The OpenCV is the one that needs no display.
PEERS = {
    "imagecorruptions": Peer(
        (
            *("imagecorruptions==1.1.2", "numpy==1.26.4", "scipy==1.11.4", "scikit-image==0.19.3"),
            *("opencv-python-headless==4.9.0.80", "pillow==10.4.0", "numba==0.68.1"),
            *("llvmlite==0.50.0", "imageio==2.38.1", "networkx==3.6.1", "packaging==26.3"),
            *("pywavelets==1.9.0", "tifffile==2026.3.3", "setuptools==79.0.1"),
        ),
        python="3.11",
    ),
    "corrupt_tta": Peer(
        (
            *("corrupt-tta==0.1.7", "numpy==2.4.6", "scipy==1.17.1", "scikit-image==0.26.0"),
            *("opencv-python-headless==5.0.0.93", "pillow==13.0.0", "imageio==2.38.1"),
            *("lazy-loader==0.6", "networkx==3.6.1", "packaging==26.3", "tifffile==2026.3.3"),
        )
    ),
    "torch_uncertainty": Peer(
        (
            *("torch-uncertainty[cpu]==0.13.0", "torch-uncertainty-assets==0.5.2"),
            *(f"{name}=={metadata.version(name)}" for name in ("torch", "torchvision")),
            *("kornia==0.9.0", "numpy==2.4.6", "scipy==1.17.1", "h5py==3.16.0"),
            *("opencv-python-headless==5.0.0.93", "pillow==13.0.0"),
        ),
        complete=False,
        comparable=False,
    ),
}


class LeftOutError(RuntimeError):
    """The comparison can't be made here; the message says why, in one line."""


# The others, each in another process


def environment(name: str) -> Path:
    """The interpreter that has a package of `PEERS`; its environment is made if need be.

    Raises:
        LeftOutError: it can't be made, say without its Python or a connection.
    """
    peer = PEERS[name]
    folder = paths.data_dir() / "cache" / name
    python = folder / "bin" / "python"
    stamp = folder / "pins.txt"
    if stamp.is_file() and stamp.read_text() == "\n".join(peer.pins):
        return python
    uv = shutil.which("uv", path=os.fspath(Path(sys.prefix) / "bin"))
    if uv is None:
        raise LeftOutError("there is no uv in this environment")
    print(f"making the environment of {name} ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    new = [uv, "venv", "-q", "--no-python-downloads", "--python", peer.python, os.fspath(folder)]
    run_quietly(new)
    how = ["--no-deps"] if peer.complete else []
    run_quietly([uv, "pip", "install", "-q", *how, "--python", os.fspath(python), *peer.pins])
    stamp.write_text("\n".join(peer.pins))
    return python


def run_quietly(command: Sequence[str]) -> None:
    """Run a command; `LeftOutError` with the first line of what it says if it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        says = result.stderr.strip().splitlines() or [f"{command[0]} failed"]
        raise LeftOutError(says[0])


class Worker:
    """A process that answers requests, a line of JSON each, as `peer_worker` does.

    command: Python's arguments. greeting: its first line.
    """

    def __init__(self, python: str | Path, *command: str | Path, threads: int) -> None:
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
        self._process = subprocess.Popen(
            [os.fspath(python), "-W", "ignore", *map(os.fspath, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **dict.fromkeys(names, str(threads))},
        )
        try:
            self.greeting = self._answer()
        except LeftOutError:
            self.__exit__(None, None, None)
            raise

    def ask(self, **request: object) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            LeftOutError: the process has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LeftOutError(f"its process ended, {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


# Measuring


def pictures(side: int) -> Tensor:
    """uint8 (N, 3, side, side): shapes10; above 32 px enlarged, with fine texture added."""
    n = BATCHES[side]
    images = data.load("shapes10", n_train=max(BATCHES.values())).train.first(n).images
    if side == images.shape[-1]:
        return images
    large = functional.interpolate(images.float(), (side, side), mode="bilinear")
    generator = torch.Generator().manual_seed(0)
    texture = torch.randn(large.shape, generator=generator)
    return (large + 6 * texture).round_().clamp_(0, 255).to(torch.uint8)


def medians(tasks: Mapping[str, Callable[[], float]], turns: int) -> dict[str, float]:
    """Median of what each task returns: all of them once to warm up, then in turns."""
    values: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(turns + 1):
        for name, task in tasks.items():
            value = task()
            if turn:
                values[name].append(value)
    return {name: statistics.median(found) for name, found in values.items()}


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds until the work is done, on a GPU too."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    synchronise()
    start = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - start


def copy_rate(device: torch.device, *, values: int = 2**26, repeats: int = 10) -> float:
    """Bytes a second of copying a large float32 tensor, read and written: the best repeat."""
    source = torch.ones(values, device=device)
    target = torch.empty_like(source).copy_(source)
    seconds = min(timed(device, lambda: target.copy_(source)) for _ in range(repeats))
    return 2 * source.nbytes / seconds


def bandwidth_share(side: int, milliseconds: float, rate: float) -> float:
    """The rate at which an image is read once and written once, over the rate of copying.

    milliseconds: for a float32 image (3, side, side). rate: bytes a second.
    """
    return 2 * 4 * 3 * side * side / (milliseconds / 1000) / rate


def measure(
    side: int, devices: Sequence[torch.device], workers: Mapping[str, Worker], *, turns: int
) -> Iterator[tuple[str, dict[str, float]]]:
    """Name of each corruption and milliseconds an image, by device type and by package.

    NaN where a package lacks the corruption.
    """
    pixels = pictures(side)
    batches = {device: (pixels.float() / 255).to(device) for device in devices}

    def ours(device: torch.device, name: str, severity: int) -> float:
        corrupt = partial(
            corruptions.corrupt, batches[device], name, severity, severities_for=SEVERITIES_FOR
        )
        return 1000 * timed(device, corrupt) / len(pixels)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        np.save(path, pixels.permute(0, 2, 3, 1).numpy())
        for name in corruptions.names("imagenet_c"):
            found = []
            for severity in range(1, 6):
                tasks: dict[str, Callable[[], float]] = {
                    device.type: partial(ours, device, name, severity) for device in devices
                }
                for package, worker in workers.items():
                    tasks[package] = partial(theirs, worker, path, name, severity)
                found.append(medians(tasks, turns))
            yield name, {who: statistics.mean(one[who] for one in found) for who in found[0]}


def theirs(worker: Worker, path: Path, name: str, severity: int) -> float:
    answer = worker.ask(
        images=os.fspath(path), corruption=name, severity=severity, seconds=THEIR_SECONDS
    )
    return float("nan") if answer["milliseconds"] is None else answer["milliseconds"]


# The table


def rows(
    side: int, name: str, threads: int, times: Mapping[str, float], rates: Mapping[str, float]
) -> list[dict[str, object]]:
    """A row for each device that ours ran on. rates: of copying, by device type."""
    others = {package: times.get(package, float("nan")) for package in PEERS}
    compared = {who: others[who] for who in times if who in PEERS and PEERS[who].comparable}
    faster = min(compared, key=compared.__getitem__, default="")
    other = compared.get(faster, float("nan"))
    return [
        {
            "size": side,
            "corruption": name,
            "device": device,
            "threads": threads,
            "robustlib_ms": times[device],
            **{f"{package}_ms": time for package, time in others.items()},
            "faster": faster,
            "times_faster": other / times[device],
            "bandwidth_share": bandwidth_share(side, times[device], rate),
            "note": WHY_SLOWER.get(name, "") if other < times[device] else "",
        }
        for device, rate in rates.items()
    ]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """By device, threads and side: the geometric mean of the ratios, the smallest, and its name."""
    lines = []
    for (device, threads, side), part in table.groupby(["device", "threads", "size"], sort=False):
        smallest = part.sort_values("times_faster").iloc[0]
        lines.append(
            {
                "device": device,
                "threads": threads,
                "size": side,
                "geometric_mean": statistics.geometric_mean(part["times_faster"]),
                "smallest": smallest["times_faster"],
                "of": smallest["corruption"],
            }
        )
    return pd.DataFrame(lines)


def start_workers(stack: ExitStack, threads: int) -> dict[str, Worker]:
    """A worker for each package that can be had; says why for the others."""
    workers = {}
    for name in PEERS:
        try:
            worker = Worker(environment(name), WORKER, name, threads=threads)
        except LeftOutError as reason:
            print(f"{name} is left out: {reason}", flush=True)
        else:
            workers[name] = stack.enter_context(worker)
    return workers


def versions(workers: Mapping[str, Worker]) -> dict[str, str]:
    """Python and the pinned packages that each worker has, or "left out"."""
    found = dict.fromkeys(PEERS, "left out")
    for name, worker in workers.items():
        packages = worker.greeting["packages"]
        pinned = [re.split(r"[\[=]", pin)[0] for pin in PEERS[name].pins]
        stated = ", ".join(f"{package} {packages[package]}" for package in pinned)
        found[name] = f"Python {worker.greeting['python']}, {stated}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.corruptions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="beside the CPU")
    try:
        asked = pick_device(parser.parse_args().device)
    except ValueError as error:
        parser.error(str(error))
    devices = list(dict.fromkeys([torch.device("cpu"), asked]))
    facts: dict[str, object] = {
        **provenance(),
        "batches": {str(side): n for side, n in BATCHES.items()},
        "severities_for": SEVERITIES_FOR,
    }
    found = []
    copied: dict[str, dict[int, float]] = {device.type: {} for device in devices}
    before = torch.get_num_threads()
    for threads in THREADS:
        torch.set_num_threads(threads)
        rates = {device.type: copy_rate(device) for device in devices}
        for device, rate in rates.items():
            copied[device][threads] = round(rate / 1e9, 2)
        with ExitStack() as stack:
            workers = start_workers(stack, threads)
            facts["compared_with"] = versions(workers)
            for side in BATCHES:
                for name, times in measure(side, devices, workers, turns=TURNS):
                    found += rows(side, name, threads, times, rates)
                    shown = ", ".join(f"{who} {time:.3g} ms" for who, time in times.items())
                    print(f"{threads} threads, {side} px {name}: {shown}", flush=True)
    torch.set_num_threads(before)
    facts["copy_gigabytes_per_second_by_threads"] = copied
    table = pd.DataFrame(found)
    path = paths.results_dir("speed").with_suffix(".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.4g")
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
    print()
    print(table.to_string(index=False, float_format="{:.3g}".format, na_rep=""))
    if table["times_faster"].notna().all():
        print()
        print(summary(table).to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
