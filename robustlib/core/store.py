"""The artifact store: one safetensors file for each trained model, evaluation and checkpoint.

An artifact is found again by the hash of its key: everything that determines its content,
including the code that made it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from robustlib.core import paths, tensorfile

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]


class StoreError(ValueError):
    """The store's folder or a file in it can't be used, or the disk is full."""


class DamagedArtifactWarning(UserWarning):
    """A stored artifact failed its checksum and is built again."""


@dataclass(frozen=True)
class Artifact:
    """What the store keeps: tensors and a JSON-compatible record.

    Attributes:
        digest: hash of the key, hexadecimal.
        tensors: named tensors on the CPU.
        record: JSON-compatible values, such as histories and wall time.
        from_store: False if it was made by this call.
    """

    digest: str
    tensors: dict[str, Tensor]
    record: dict[str, Any]
    from_store: bool


class Store:
    """A folder of artifacts, `<root>/<kind>/<digest>.safetensors`.

    Args:
        root: the folder; default `robustlib.core.paths.store_dir()`. It is made if missing.

    Raises:
        StoreError: the folder can't be made or written to.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root if root is not None else paths.store_dir()).absolute()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise StoreError(
                f"the artifact store {self.root} can't be written to ({error.strerror}); "
                "free the folder or name another with the variable ROBUSTLIB_STORE."
            ) from error

    def path(self, kind: str, digest: str) -> Path:
        """Where the artifact of that kind and digest lies or would lie."""
        return self.root / kind / f"{digest}.safetensors"

    def find(self, kind: str, key: Mapping[str, Any]) -> Artifact | None:
        """The stored artifact, or None if there is none or (with a warning) it is damaged."""
        digest = digest_of(key)
        path = self.path(kind, digest)
        if not path.is_file():
            return None
        try:
            tensors, texts = tensorfile.read(path)
        except FileNotFoundError:  # removed by another process just now
            return None
        except PermissionError as error:
            raise StoreError(
                f"the stored artifact {path} may not be read ({error.strerror}): ask its owner for "
                "chmod a+r, or name another store with the variable ROBUSTLIB_STORE."
            ) from error
        except tensorfile.DamagedFileError as error:
            warnings.warn(
                f"stored artifact {path.name} ({kind}) is damaged and is built again: {error}",
                DamagedArtifactWarning,
                stacklevel=2,
            )
            return None
        return Artifact(digest, tensors, json.loads(texts["record"]), from_store=True)

    def put(
        self,
        kind: str,
        key: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        record: dict[str, Any],
    ) -> Artifact:
        """Store an artifact, in place of any earlier one with that key.

        `key` must be JSON-compatible and name everything that determines the result.
        Raises `StoreError` if it can't be written, say on a full disk; the store is as before.
        """
        stored = {name: value.detach().cpu() for name, value in tensors.items()}
        digest = digest_of(key)
        texts = {"key": _canonical(key), "record": _canonical(record)}
        path = self.path(kind, digest)
        try:
            tensorfile.write(path, stored, texts)
        except OSError as error:
            raise _unwritable(path, error) from error
        return Artifact(digest, stored, record, from_store=False)

    @contextmanager
    def claimed(self, kind: str, key: Mapping[str, Any]) -> Iterator[None]:
        """While inside, no other process makes the artifact of that key; waits for one that does.

        So two that want the same make it once: look with `find` again inside. The lock is the file
        system's: it ends with its process. Where there are none, as on Windows, nobody waits.
        """
        path = self.root / "claims" / f"{kind}-{digest_of(key)}"
        try:
            path.parent.mkdir(exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            with suppress(OSError):  # a file system without locks
                if fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def remove(self, kind: str, key: Mapping[str, Any]) -> None:
        """Delete the artifact with that key, if there is one."""
        self.path(kind, digest_of(key)).unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"can't write {path} ({error.strerror}). Free space, or name another folder with "
        "the variable ROBUSTLIB_STORE, and start again: what is stored is unharmed, and "
        "training goes on from its last checkpoint."
    )


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(key: Mapping[str, Any]) -> str:
    """A hash of `key` (JSON-compatible; the order of its entries doesn't matter), 32 hex digits."""
    return hashlib.sha256(_canonical(key).encode()).hexdigest()[:32]
