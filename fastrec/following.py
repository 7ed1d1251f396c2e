"""A model that follows its artifact: what is put in the folder's place serves, between one call and the next."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Self

from .artifact.folder import MANIFEST
from .calls import differing
from .compressed import CompressedModel, load
from .errors import FastrecError, InputError
from .program import Program
from .recipe import Recipe
from .report import Report
from .sealed import Sealed
from .techniques import TECHNIQUES, Technique

__all__ = ["Following", "follow"]

_Stamp = tuple[int, ...] | None


def follow(
    folder: str | os.PathLike[str],
    *,
    every: float = 1.0,
    types: Sequence[type] = (),
    verify: bool = True,
    techniques: Mapping[str, type[Technique]] = TECHNIQUES,
) -> Following:
    """The compressed model in a folder, and whatever is put in its place from then on: see `Following`.

    `every` is how many seconds lie between two looks at the folder, at least; the rest is as in `load`, whose errors this raises.

    Example:
        >>> import tempfile, torch
        >>> from fastrec import compress, follow
        >>> tower = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)).eval()
        >>> fast = compress(tower, torch.randn(4, 8), batch_sizes=(1,), seconds=1, backends=[], progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fast.save(folder + "/ranker")
        ...     with follow(folder + "/ranker") as served:
        ...         served(torch.zeros(3, 8)).shape
        torch.Size([3, 1])
    """
    return Following(folder, every=every, types=types, verify=verify, techniques=techniques)


class Following(Sealed):
    """Serves like the loaded model of a folder, and goes on with the artifact that takes that one's place.

    A thread looks at the manifest every few seconds, by its place and time on the disk; where that is another one, it loads the new
    artifact beside the old one, whose calls go on, and then every new call is answered by the new one. A call is answered by one
    model from its beginning to its end. What cannot be loaded is left alone: the old one serves on, and `error` says why, until the
    folder changes again.

    `digest` says which artifact serves, `model` is that one, `swaps` counts how often it was exchanged. Calls are safe from all
    threads. Each process looks for itself: one that was forked starts a thread of its own with its first call, and is refused by
    `ForkSafetyError` where a loaded model is. `close`, or the end of a `with` block, ends the thread; what serves goes on serving.

    Cost: a call takes a fraction of a microsecond more, a look some ten; while another artifact is loaded both are in memory.
    """

    error: FastrecError | None
    swaps: int

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: float = 1.0,
        types: Sequence[type] = (),
        verify: bool = True,
        techniques: Mapping[str, type[Technique]] = TECHNIQUES,
    ) -> None:
        super().__init__()
        if isinstance(every, bool) or not isinstance(every, (int, float)) or not 0 < every < float("inf"):
            raise InputError(f"every takes a finite number of seconds above 0, got {every!r:.80}")
        self._folder, self._every = os.path.abspath(os.fspath(folder)), float(every)
        self._settings: dict[str, Any] = {"types": types, "verify": verify, "techniques": techniques}
        self.error = None
        self.swaps = 0
        # Before loading: what is replaced meanwhile is seen at the next look.
        self._seen = _stamp(self._folder)
        # In a tuple, so that it is no submodule: one reference, exchanged at once.
        self._serving = (load(self._folder, **self._settings),)
        self._looking, self._closed = threading.Lock(), threading.Event()
        self._process, self._owners = os.getpid(), dict[int, int]()
        self._start()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The answer of what serves now, for one batch."""
        if os.getpid() != self._process:
            self._after_fork()
        return self._serving[0](*args, **kwargs)

    @property
    def model(self) -> CompressedModel:
        """What serves now: to be asked more than once for the same version."""
        return self._serving[0]

    @property
    def original(self) -> Program:
        """The original of what serves."""
        return self.model.original

    @property
    def digest(self) -> str:
        """Which artifact serves: the digest of its manifest."""
        return self.model.digest

    @property
    def report(self) -> Report:
        """The report of what serves."""
        return self.model.report

    @property
    def recipe(self) -> Recipe:
        """The recipe of what serves."""
        return self.model.recipe

    @property
    def notes(self) -> tuple[str, ...]:
        """What is otherwise than where it was saved, and why a newer artifact does not serve."""
        error = self.error
        return (
            *self.model.notes,
            *(() if error is None else (f"the artifact in its place is refused: {error}",)),
        )

    def call_of(self, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """How this is called, `(args, kwargs)`, with a batch in the form of the example."""
        return self.model.call_of(batch)

    def refresh(self) -> bool:
        """Looks now, and loads what is new: whether something else serves than before. What is refused is in `error`."""
        if os.getpid() != self._process:
            self._after_fork()
        with self._looking:
            stamp = _stamp(self._folder)
            if stamp == self._seen:
                return False
            try:
                found = load(self._folder, **self._settings)
            except FastrecError as error:
                self._refuse(error)
                found = None
            except Exception as error:  # noqa: BLE001 - whatever it is, the old one serves on
                self._refuse(InputError(f"{self._folder}: {type(error).__name__}: {error}"))
                found = None
            # A folder that was exchanged while it was read is looked at again.
            self._seen = stamp if _stamp(self._folder) == stamp else None
            if found is None:
                return False
            self.error = None
            if found.digest == self.digest:
                return False
            if differs := differing(self.model.original.layout, found.original.layout):
                self._refuse(
                    InputError(
                        f"the model at {self._folder} is called otherwise than the one that serves: {differs}"
                    )
                )
                return False
            self._serving = (found,)
            self.swaps += 1
            return True

    def close(self) -> None:
        """Looks no more; what serves goes on serving."""
        self._closed.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {"every": self._every, **self._settings}
        if settings["techniques"] is TECHNIQUES:
            del settings["techniques"]
        return _following, (self._folder, settings)

    def __deepcopy__(self, memo: dict[int, Any]) -> Following:
        return _following(*self.__reduce__()[1])

    def __copy__(self) -> Following:
        return self.__deepcopy__({})

    def _refuse(self, error: FastrecError) -> None:
        self.error = error

    def _start(self) -> None:
        """Starts the thread, which does not keep this alive: it ends soon after the last reference to it is gone."""
        self._thread = threading.Thread(
            target=_look,
            args=(weakref.ref(self), self._closed, self._every),
            name="fastrec-follow",
            daemon=True,
        )
        self._thread.start()

    def _after_fork(self) -> None:
        """In a forked process, where this thread is not, and its lock may be held for ever: new ones. Raises `ForkSafetyError`."""
        self.model.check_fork()
        process, thread = os.getpid(), threading.get_ident()
        if self._owners.setdefault(process, thread) != thread:
            return  # another thread of this process is about it
        self._looking, closed = threading.Lock(), self._closed.is_set()
        self._closed = threading.Event()
        if closed:
            self._closed.set()
        else:
            self._start()
        self._process = process


def _look(following: weakref.ref[Following], closed: threading.Event, every: float) -> None:
    """Looks every so often, until it is closed or gone."""
    while not closed.wait(every):
        served = following()
        if served is None:
            return
        served.refresh()
        del served


def _stamp(folder: str) -> _Stamp:
    """What tells one manifest in a folder from another without reading it; None where there is none."""
    with contextlib.suppress(OSError):
        found = os.stat(os.path.join(folder, MANIFEST))
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    return None


def _following(folder: str, settings: Mapping[str, Any]) -> Following:
    """What a pickle of one calls."""
    return Following(folder, **settings)
