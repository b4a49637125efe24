"""Speed of the nineteen corruptions of ImageNet-C beside imagecorruptions: part of `make bench`.

Both get the same pixels and the severities published for 224 px, which are all that
imagecorruptions has, and take turns: ours a batch, theirs one image after another, as one does.
Each time is a mean over the five severities of medians over the turns. imagecorruptions needs old
versions of its dependencies, so it runs in an environment of its own, which is made on the first
run and asks for Python 3.11; without it, the table has our times only. Close other programs first.

The bandwidth column sets our time beside that of copying the batch once, at the rate measured
for a large tensor: what a corruption that does nothing but read and write would reach.

The table goes to `results/speed.csv`, what it was measured on to `results/speed.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
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
TURNS = 3
THEIR_SECONDS = 0.1  # at least one image for each severity and turn, and no more in this time

PYTHON = "3.11"
# Installed without resolving, so that only the OpenCV that needs no display comes in.
PINS = (
    *("imagecorruptions==1.1.2", "numpy==1.26.4", "scipy==1.11.4", "scikit-image==0.19.3"),
    *("opencv-python-headless==4.9.0.80", "pillow==10.4.0", "numba==0.68.1", "llvmlite==0.50.0"),
    *("imageio==2.38.1", "networkx==3.6.1", "packaging==26.3", "pywavelets==1.9.0"),
    *("tifffile==2026.3.3", "setuptools==79.0.1"),
)
WHY_SLOWER = {"jpeg_compression": "libjpeg in both; ours also converts floats to 8 bits and back"}
WORKER = Path(__file__).with_name("imagecorruptions_worker.py")


class LeftOutError(RuntimeError):
    """The comparison can't be made here; the message says why, in one line."""


# imagecorruptions, in another process


def environment() -> Path:
    """The interpreter that has imagecorruptions; its environment is made if need be.

    Raises:
        LeftOutError: it can't be made, say without Python 3.11 or a connection.
    """
    folder = paths.data_dir() / "cache" / "imagecorruptions"
    python = folder / "bin" / "python"
    stamp = folder / "pins.txt"
    if stamp.is_file() and stamp.read_text() == "\n".join(PINS):
        return python
    uv = shutil.which("uv", path=os.fspath(Path(sys.prefix) / "bin"))
    if uv is None:
        raise LeftOutError("there is no uv in this environment")
    print("making the environment of imagecorruptions ...", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    run_quietly([uv, "venv", "-q", "--no-python-downloads", "--python", PYTHON, os.fspath(folder)])
    run_quietly([uv, "pip", "install", "-q", "--no-deps", "--python", os.fspath(python), *PINS])
    stamp.write_text("\n".join(PINS))
    return python


def run_quietly(command: Sequence[str]) -> None:
    """Run a command; `LeftOutError` with the first line of what it says if it fails."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        says = result.stderr.strip().splitlines() or [f"{command[0]} failed"]
        raise LeftOutError(says[0])


class Worker:
    """A process that answers requests, a line of JSON each, as `imagecorruptions_worker` does.

    greeting: its first line.
    """

    def __init__(self, python: str | Path, script: Path, threads: int) -> None:
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
        self._process = subprocess.Popen(
            [os.fspath(python), "-W", "ignore", os.fspath(script)],
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
            raise LeftOutError(f"the process of imagecorruptions ended, {self._process.wait()}")
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
    side: int, devices: Sequence[torch.device], worker: Worker | None, *, turns: int
) -> Iterator[tuple[str, dict[str, float]]]:
    """Name of each corruption and milliseconds an image, by device type and for "theirs"."""
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
                if worker:
                    tasks["theirs"] = partial(theirs, worker, path, name, severity)
                found.append(medians(tasks, turns))
            yield name, {who: statistics.mean(one[who] for one in found) for who in found[0]}


def theirs(worker: Worker, path: Path, name: str, severity: int) -> float:
    answer = worker.ask(
        images=os.fspath(path), corruption=name, severity=severity, seconds=THEIR_SECONDS
    )
    return answer["milliseconds"]


# The table


def rows(
    side: int, name: str, times: Mapping[str, float], rates: Mapping[str, float]
) -> list[dict[str, object]]:
    """A row for each device that ours ran on. rates: of copying, by device type."""
    other = times.get("theirs", float("nan"))
    return [
        {
            "size": side,
            "corruption": name,
            "device": device,
            "robustlib_ms": times[device],
            "imagecorruptions_ms": other,
            "times_faster": other / times[device],
            "bandwidth_share": bandwidth_share(side, times[device], rate),
            "note": WHY_SLOWER.get(name, "") if other < times[device] else "",
        }
        for device, rate in rates.items()
    ]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """For each device and side the geometric mean of the ratios, the smallest, and its name."""
    lines = []
    for (device, side), part in table.groupby(["device", "size"], sort=False):
        smallest = part.sort_values("times_faster").iloc[0]
        lines.append(
            {
                "device": device,
                "size": side,
                "geometric_mean": statistics.geometric_mean(part["times_faster"]),
                "smallest": smallest["times_faster"],
                "of": smallest["corruption"],
            }
        )
    return pd.DataFrame(lines)


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
    threads = torch.get_num_threads()
    rates = {device.type: copy_rate(device) for device in devices}
    facts: dict[str, object] = {
        **provenance(),
        "threads": threads,
        "copy_gigabytes_per_second": {name: round(rate / 1e9, 2) for name, rate in rates.items()},
        "batches": {str(side): n for side, n in BATCHES.items()},
        "severities_for": SEVERITIES_FOR,
        "compared_with": "left out",
    }
    found = []
    with ExitStack() as stack:
        worker = None
        try:
            worker = stack.enter_context(Worker(environment(), WORKER, threads))
        except LeftOutError as reason:
            print(f"imagecorruptions is left out: {reason}", flush=True)
        else:
            packages = worker.greeting["packages"]
            names = [pin.split("==")[0] for pin in PINS]
            versions = [f"{name} {packages[name]}" for name in names]
            facts["compared_with"] = f"Python {worker.greeting['python']}, {', '.join(versions)}"
        for side in BATCHES:
            for name, times in measure(side, devices, worker, turns=TURNS):
                found += rows(side, name, times, rates)
                shown = ", ".join(f"{who} {time:.3g} ms" for who, time in times.items())
                print(f"{side} px {name}: {shown}", flush=True)
    table = pd.DataFrame(found)
    path = paths.results_dir("speed").with_suffix(".csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.4g")
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
    print()
    print(table.to_string(index=False, float_format="{:.3g}".format, na_rep=""))
    if worker:
        print()
        print(summary(table).to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
