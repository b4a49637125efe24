from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from robustlib.core import tensorfile
from robustlib.core.store import Artifact, DamagedArtifactWarning, Store, StoreError, digest_of

KEY = {"recipe": "standard", "seed": 0}


def make() -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    return {"weights": torch.arange(6.0).view(2, 3)}, {"history": [1.5, 0.25]}


def get_or_make(store: Store, kind: str, key: dict[str, object], make) -> Artifact:
    """As training and evaluation use the store."""
    return store.find(kind, key) or store.put(kind, key, *make())


def refuse() -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    raise AssertionError("made again although it was stored")


def test_a_second_request_comes_from_the_store(store: Store) -> None:
    first = get_or_make(store, "models", KEY, make)
    second = get_or_make(store, "models", dict(reversed(KEY.items())), refuse)
    assert not first.from_store
    assert second.from_store
    assert torch.equal(second.tensors["weights"], torch.arange(6.0).view(2, 3))
    assert second.record == {"history": [1.5, 0.25]}


def test_another_key_or_kind_is_another_artifact(store: Store) -> None:
    get_or_make(store, "models", KEY, make)
    assert store.find("models", KEY | {"seed": 1}) is None
    assert store.find("evaluations", KEY) is None


def flip_a_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip_a_byte(path, -1),
        lambda path: flip_a_byte(path, 3),
        lambda path: path.write_bytes(path.read_bytes()[:-8]),
        lambda path: path.write_bytes(b""),
    ],
    ids=["a value", "the header", "cut short", "empty"],
)
def test_a_damaged_artifact_is_built_again_with_a_warning(store: Store, damage) -> None:
    digest = get_or_make(store, "models", KEY, make).digest
    damage(store.path("models", digest))
    with pytest.warns(DamagedArtifactWarning, match=digest):
        again = get_or_make(store, "models", KEY, make)
    assert not again.from_store
    assert get_or_make(store, "models", KEY, refuse).from_store


def test_an_interrupted_write_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        get_or_make(store, "models", KEY, make)
    assert list((store.root / "models").iterdir()) == []


def test_an_unwritable_store_is_refused(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.raises(StoreError, match="ROBUSTLIB_STORE"):
        Store(blocker / "store")


def _write_many(root: str, worker: int) -> None:
    store = Store(root)
    for index in range(20):
        store.put(
            "models", {"index": index}, {"x": torch.full((1000,), float(index))}, {"w": worker}
        )


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write_many, args=(str(tmp_path), w)) for w in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    store = Store(tmp_path)
    for index in range(20):
        artifact = store.find("models", {"index": index})
        assert artifact is not None
        assert artifact.tensors["x"].eq(index).all()
    assert len(list((tmp_path / "models").iterdir())) == 20


def test_digests_need_json() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        digest_of({"a": float("nan")})


def test_what_a_killed_process_left_is_deleted_after_a_day(store: Store) -> None:
    path = store.path("models", store.put("models", KEY, *make()).digest)
    old, new = (path.with_name(f".{path.stem}.{name}") for name in ("old", "new"))
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.put("models", KEY, *make())
    assert not old.exists()
    assert new.exists(), "another process may be writing it"


def test_removing(store: Store) -> None:
    store.put("models", KEY, *make())
    store.remove("models", KEY)
    store.remove("models", KEY)
    assert store.find("models", KEY) is None


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_what_is_stored_is_as_readable_as_the_umask_says(
    store: Store, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        digest = store.put("models", KEY, *make()).digest
    finally:
        os.umask(before)
    assert store.path("models", digest).stat().st_mode & 0o777 == mode


def test_what_may_not_be_read_is_not_made_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.path("models", store.put("models", KEY, *make()).digest)

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tensorfile, "safe_open", deny)
    with pytest.raises(StoreError, match=rf"{path} may not be read.*chmod a\+r"):
        get_or_make(store, "models", KEY, refuse)
