"""Tensors in a file: written as a whole or not at all, and checked when read."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

_STALE = 24 * 3600  # seconds after which an unfinished file can only be a killed process's


class DamagedFileError(ValueError):
    """A file that can't be read back as it was written."""


def write(path: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write named tensors and texts to a safetensors file.

    The file is written under another name and moved into place, so that an interruption or a
    second process never leaves half a file under `path`. Its folder is made if missing. What
    a killed process left under the other name is deleted after a day, at the next writing.

    Args:
        path: the file, replaced if there is one.
        tensors: on any device.
        texts: kept in the header; "sha256" is reserved.

    Raises:
        OSError: the file can't be written.
    """
    stored = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {**texts, "sha256": digest(stored, texts)}
    path.parent.mkdir(parents=True, exist_ok=True)
    _delete_stale(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:  # unlike tempfile's, readable as the umask says
            file.write(save(stored, metadata=header))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _delete_stale(path: Path) -> None:
    for left in path.parent.glob(f".{path.stem}.*"):
        try:
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink()
        except FileNotFoundError:  # another process was faster
            pass


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, on the CPU, and the texts of a file.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: it may not be read.
        DamagedFileError: the file is unreadable, or its checksum does not match.
    """
    try:
        with safe_open(path, framework="pt") as file:
            texts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, PermissionError):
        raise
    except (SafetensorError, OSError) as error:
        raise DamagedFileError(str(error)) from error
    if texts.pop("sha256", None) != digest(tensors, texts):
        raise DamagedFileError("its checksum does not match")
    return tensors, texts


def digest(tensors: Mapping[str, Tensor], texts: Mapping[str, str] | None = None) -> str:
    """SHA-256 (hexadecimal) of names, types, shapes and values, whatever their order."""
    hasher = hashlib.sha256()
    for name, text in sorted((texts or {}).items()):
        hasher.update(f"{name} {len(text)} {text}".encode())
    for name, value in sorted(tensors.items()):
        hasher.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hasher.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
