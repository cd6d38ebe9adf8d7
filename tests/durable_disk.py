"""A disk that may lose power at any time: of each file and folder what it held when it was last synced, nothing since.

Whatever is renamed or linked to its final name has to be synced by then: else a crash may leave that name with half of
the content. What a killed process leaves under a name that ends in .part is nobody's, and counts nowhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Disk:
    """root  the folder that is watched
    torn  what got its name before its content was synced
    """

    def __init__(self, root: Path):
        self.root, self.torn = root, []
        self._kept: dict[int, object] = {}

    def settle(self) -> None:
        """All that lies here now is on disk."""
        self._kept = {inode: _content(path) for path, inode in _below(self.root)}

    def synced(self, inode: int) -> None:
        """A file or folder was synced."""
        self._kept |= {found: _content(path) for path, found in _below(self.root) if found == inode}

    def named(self, path: Path) -> None:
        """A file or folder is about to get its name."""
        self.torn += self._unsynced(path) if path.is_relative_to(self.root) else []

    @property
    def lost(self) -> list[str]:
        """Files whose content, and folders whose entries, a crash would take back, relative to the root."""
        return self._unsynced(self.root)

    def _unsynced(self, path: Path) -> list[str]:
        each = [(one, self._kept.get(inode), _content(one)) for one, inode in _below(path)]
        # what is new and empty has nothing to lose
        return sorted(str(one.relative_to(self.root)) for one, kept, now in each if now != kept and (now or kept))


@contextmanager
def watched(root: Path, monkeypatch) -> Iterator[Disk]:
    """The disk under `root`, which is empty or as it was when it last settled."""
    disk, real, held = Disk(root), {name: getattr(os, name) for name in ("fsync", "rename", "replace", "link")}, []

    def fsync(descriptor):
        real["fsync"](descriptor)
        held.append(os.dup(descriptor))  # so that no other file gets the number of a deleted one
        disk.synced(os.fstat(descriptor).st_ino)

    def naming(name):
        def named(source, target, **options):
            disk.named(Path(source))
            return real[name](source, target, **options)

        return named

    disk.settle()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        for name in ("rename", "replace", "link"):
            patch.setattr(os, name, naming(name))
        yield disk
    for descriptor in held:
        os.close(descriptor)


def _content(path: Path) -> object:
    """Bytes of a file; name and inode of each entry of a folder that is somebody's."""
    if not path.is_dir():
        return path.read_bytes()
    return {entry.name: entry.inode() for entry in os.scandir(path) if not entry.name.endswith(".part")}


def _below(path: Path) -> Iterator[tuple[Path, int]]:
    """A file or folder and all that lies in it, each with its inode."""
    yield path, path.stat().st_ino
    for entry in os.scandir(path) if path.is_dir() else ():
        if entry.is_dir():
            yield from _below(Path(entry.path))
        else:
            yield Path(entry.path), entry.inode()
