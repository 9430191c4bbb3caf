"""Where does a study stand, so that it survives a kill at any moment and is never mistaken for another?

    with StudyFolder.open("study", identity={"model_hash": …, "seed": 0, …}) as folder:
        circuit = folder.stage("indirect-object/circuit", make=lambda: …)  # plain values
        effects = folder.result("indirect-object/activation_patching", make=lambda: …)  # a method's Result
        folder.write_text("report.html", page)

On disk, readable without us:

    manifest.json            which study, and which stages are done: see `microtome.store.manifest`
    <stage>.json             the plain values of a stage
    <stage>/result.json …    what a method returned: see `microtome.core.result`
    ledger.jsonl             claims, predictions and evidence: see `microtome.core.claim`
    study.lock               the process that writes: see `microtome.store.lock`

1. Opening a folder compares the identity given with the one written there; a difference is an error that names it.
2. A stage that is not done is made, its file written whole, and then the manifest, whole: only the manifest says
   that a stage is done. A kill between the two leaves a file that no manifest names, and the stage is made again.
3. What a stage returns has always been read from the disk, so a resumed study goes on with the very values that an
   uninterrupted one had.

An error deletes nothing. A stage whose file is moved away is made again.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self

from microtome.core.claim import Ledger
from microtome.core.cost import Cost, measure
from microtome.core.errors import InputError, StoreError
from microtome.store import manifest as manifests
from microtome.store.lock import LOCK, Holder, lock
from microtome.store.manifest import MANIFEST, UNTOUCHED
from microtome.store.whole_file import PARTIAL, write_whole

if TYPE_CHECKING:
    from microtome.core.result import Result

LEDGER: Final = "ledger.jsonl"
_OWN: Final = (MANIFEST, LEDGER, LOCK)
_WORD: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class StudyFolder(Holder):
    """A study on disk, held by this process until it is closed. Made by `StudyFolder.open`."""

    def __init__(self, path: Path, manifest: dict[str, Any], held: IO[str]) -> None:
        super().__init__(held)
        self.path = path
        self._manifest = manifest

    @classmethod
    def open(cls, path: str | Path, identity: Mapping[str, Any], *, fresh: bool = False) -> Self:
        """The study at `path`: a new one where nothing is, else the one there, to go on with.

        identity: what makes it this study and no other (model name and hash, settings, seed, tasks, version), as
        plain JSON. fresh: begin anew; a study already there is first renamed to `<path>-before-<number>`, whole.

        Raises `InputError` for an identity that is not plain, `StoreError` for a folder that holds something else,
        another study (naming what differs), a damaged manifest, or a study that is being written.
        """
        from microtome.core.provenance import versions

        path = Path(path)
        identity = manifests.plain(dict(identity), "the identity of a study")
        _refuse_foreign(path)
        if fresh and (path / MANIFEST).exists():
            _set_aside(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{path} cannot be made ({error.strerror}); give another folder") from error
        held = lock(path)
        try:
            begun = (path / MANIFEST).exists()
            manifest = manifests.read(path) if begun else manifests.new(identity)
            manifests.refuse_other(path, manifest["identity"], identity)
            for partial in path.rglob("*.partial"):
                if PARTIAL.fullmatch(partial.name):
                    partial.unlink(missing_ok=True)
            folder = cls(path, manifest, held)
            used = manifest["versions"]
            if not begun or used[-1:] != [versions()]:
                folder._replace_manifest(versions=[*used, versions()])
            return folder
        except BaseException:
            held.close()
            raise

    @property
    def manifest(self) -> dict[str, Any]:
        """What `manifest.json` says; a copy."""
        return deepcopy(self._manifest)

    @property
    def costs(self) -> dict[str, Cost]:
        """What each stage cost when it was made, in the order in which they were done."""
        return {name: manifests.cost(done) for name, done in self._manifest["stages"].items()}

    @cached_property
    def ledger(self) -> Ledger:
        """Claims, predictions and evidence of this study. Raises `StoreError` where the file was altered."""
        return Ledger(self.path)

    def has(self, name: str) -> bool:
        """Whether a stage is done, or a text written, and its file still there."""
        done = self._manifest["stages"].get(name)
        return (self.path / (done["file"] if done else name)).is_file()

    def stage(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, as plain JSON values (tuples come back as lists); made once, then read.

        Raises `InputError` for a name that is taken and for what is not plain, `StoreError` where the file is not
        what was written. Whatever `make` raises passes through and leaves the folder as it was.
        """
        file = f"{name}.json"
        if not self._is_done(name, file):
            with measure() as recorder:
                made = manifests.plain(make(), f"what {name!r} gave")
            self._write(file, json.dumps(made, indent=1).encode())
            self._mark_done(name, file, recorder.cost().seconds, recorder.cost())
        return json.loads(self._content(name))

    def result(self, name: str, make: Callable[[], "Result"]) -> "Result":
        """The `Result` that `make` returns, of the class that its method has; made once, then loaded.

        Raises as `stage` does, and `StoreError` where the method that made it is not installed.
        """
        from microtome.core.result import Result

        file = f"{name}/result.json"
        if not self._is_done(name, file):
            with measure() as recorder:
                made = make()
            if not isinstance(made, Result):
                raise InputError(f"{name!r} gave a {type(made).__name__}; use `stage` for what is no Result")
            self._refuse_closed()
            try:
                made.save(self.path / name)
            except OSError as error:
                raise StoreError(f"{self.path / name} cannot be written ({error.strerror})") from error
            self._mark_done(name, file, recorder.cost().seconds, made.cost)
        self._content(name)
        return Result.load(self.path / name)

    def write_text(self, name: str, text: str) -> Path:
        """Write or rewrite a file of the study, such as its report, whole; returns its path.

        Raises `InputError` for a name that a stage has, `StoreError` where it cannot be written.
        """
        self._refuse_taken(name)
        return self._write(name, text.encode())

    def _is_done(self, name: str, file: str) -> bool:
        """Whether this stage stands on the disk; refuses a name under which something else does."""
        done = self._manifest["stages"].get(name)
        if done is None:
            self._refuse_taken(file)
        elif done["file"] != file:
            raise InputError(f"the stage {name!r} is kept in {done['file']}, not {file}; choose another name")
        return done is not None and self.has(name)

    def _refuse_taken(self, file: str) -> None:
        """Refuse names that lead out of the folder, and two things in one place."""
        if not all(map(_WORD.fullmatch, file.split("/"))):
            raise InputError(
                f"{file!r} names no place in a study; use letters, digits, '_', '-', '.', and '/' between folders"
            )
        if file.casefold() in _OWN:
            raise InputError(f"{file!r} is the study's own file; choose another name")
        for name, done in self._manifest["stages"].items():
            if file.casefold() == done["file"].casefold():
                raise InputError(f"{file!r} is where the stage {name!r} is kept; choose another name")

    def _write(self, file: str, content: bytes) -> Path:
        self._refuse_closed()
        write_whole(self.path / file, content)
        return self.path / file

    def _mark_done(self, name: str, file: str, seconds: float, cost: Cost) -> None:
        digest = hashlib.sha256((self.path / file).read_bytes()).hexdigest()
        done = {"file": file, "sha256": digest, "seconds": seconds, "cost": asdict(cost)}
        done["date"] = manifests.now()
        self._replace_manifest(stages=self._manifest["stages"] | {name: done})

    def _replace_manifest(self, **changes: Any) -> None:
        manifest = manifests.plain(self._manifest | changes, "the manifest")
        self._write(MANIFEST, json.dumps(manifest, indent=1).encode())
        self._manifest = manifest

    def _content(self, name: str) -> bytes:
        done = self._manifest["stages"][name]
        path = self.path / done["file"]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path} cannot be read ({error.strerror}); {UNTOUCHED}") from error
        if hashlib.sha256(content).hexdigest() != done["sha256"]:
            raise StoreError(
                f"{path} is not what the study wrote (its SHA-256 differs from the manifest's); {UNTOUCHED}. "
                "Restore it from a copy, or move it away to have this stage made again"
            )
        return content

    def _refuse_closed(self) -> None:
        if self._held.closed:
            raise StoreError(f"the study {self.path} was closed; open it again to write")


def _refuse_foreign(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file; give a folder for the study")
    if not path.exists():
        return
    if (path / MANIFEST).exists():
        return manifests.refuse_foreign(path)
    foreign = sorted(p.name for p in path.iterdir() if p.name != LOCK and not PARTIAL.fullmatch(p.name))
    if foreign:
        shown = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise StoreError(
            f"{path} holds files ({shown}) but no {MANIFEST}, so it is no study; {UNTOUCHED}. "
            "Give an empty folder or a new one (--out)"
        )


def _set_aside(path: Path) -> None:
    """Rename a study that nobody writes to the first free `<path>-before-<number>`."""
    whole = Path(os.path.abspath(path))
    with lock(path):
        number = 1
        while (aside := whole.with_name(f"{whole.name}-before-{number}")).exists():
            number += 1
        try:
            whole.rename(aside)
        except OSError as error:
            raise StoreError(
                f"{path} cannot be renamed to {aside.name} ({error.strerror}); {UNTOUCHED}"
            ) from error
