"""The machine a number was taken on; numbers of different machines are not compared."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

__all__ = ["Machine", "machine"]

LIBRARIES = ("torch", "numpy", "onnxruntime", "openvino")
# Vector and matrix instructions that decide which kernels run: x86, then Arm.
FLAGS = (
    "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "sve", "sve2", "i8mm", "bf16",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """What decides how fast a call is: processor, cores, threads, library versions. Names no host, user or path.

    `cores` are those of the machine, `affinity` those this process may use, `load` the runnable processes over
    the last minute (None where the system does not say), `threads` those of torch, `date` in UTC.
    """

    cpu: str
    flags: tuple[str, ...]
    cores: int
    affinity: int
    load: float | None
    threads: int
    libraries: Mapping[str, str]
    python: str
    platform: str
    date: str

    @property
    def slug(self) -> str:
        """A name for files: processor, usable cores, threads.

        Example:
            >>> Machine("AMD EPYC 9354 (R)", (), 64, 2, 0.5, 1, {}, "3.12.1", "Linux x86_64", "2026-01-31").slug
            'amd-epyc-9354-r-2-cores-1-thread'
        """
        cpu = re.sub(r"[^a-z0-9]+", "-", self.cpu.lower()).strip("-")[:60].strip("-") or "unknown"
        return f"{cpu}-{_count(self.affinity, 'core')}-{_count(self.threads, 'thread')}".replace(" ", "-")

    def __str__(self) -> str:
        libraries = ", ".join(f"{name} {version}" for name, version in self.libraries.items())
        load = "" if self.load is None else f", load {self.load:.1f}"
        return (
            f"{self.cpu}, {self.affinity} of {_count(self.cores, 'core')}, {_count(self.threads, 'thread')}{load}; "
            f"{libraries}, Python {self.python}; {self.platform}; {self.date}"
        )


def machine() -> Machine:
    """Describe this machine as it is now.

    Example:
        >>> machine().threads >= 1
        True
    """
    cpu, flags = _processor()
    cores = os.cpu_count() or 1
    return Machine(
        cpu=cpu,
        flags=flags,
        cores=cores,
        affinity=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores,
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        threads=torch.get_num_threads(),
        libraries=_versions(),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _processor(info: Path = Path("/proc/cpuinfo")) -> tuple[str, tuple[str, ...]]:
    """The processor's name and those of its instruction sets that are listed in `FLAGS`."""
    if not info.is_file():
        return platform.processor() or platform.machine(), (torch.backends.cpu.get_cpu_capability().lower(),)
    fields: dict[str, str] = {}
    for line in info.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    present = set((fields.get("flags") or fields.get("features") or "").split())
    return fields.get("model name") or platform.machine(), tuple(flag for flag in FLAGS if flag in present)


def _versions() -> dict[str, str]:
    """Versions of the libraries that do the arithmetic, read without importing them."""
    installed = {}
    for name in LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
