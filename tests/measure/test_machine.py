"""The description of a machine: complete, and anonymous."""

from __future__ import annotations

import dataclasses
import getpass
import os
import re
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from fastrec.measure.machine import Machine, _processor, machine


def test_it_describes_this_process() -> None:
    found = machine()
    assert found.threads == torch.get_num_threads()
    assert 1 <= found.affinity <= found.cores
    assert found.libraries["torch"] == metadata.version("torch")
    assert found.libraries["numpy"] == np.__version__
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    age = datetime.now(UTC) - datetime.fromisoformat(found.date)
    assert timedelta(0) <= age < timedelta(minutes=1)
    capability = torch.backends.cpu.get_cpu_capability()
    assert ("avx512f" in found.flags) >= (capability == "AVX512")


def test_it_names_no_host_user_or_path() -> None:
    text = repr(machine())
    assert str(Path.home()) not in text and os.getcwd() not in text
    for name in (socket.gethostname(), getpass.getuser()):
        assert not re.search(rf"\b{re.escape(name)}\b", text)


def test_libraries_are_not_imported_to_read_their_version() -> None:
    code = (
        "import sys; from fastrec.measure.machine import machine; machine(); "
        "print(sorted({'onnxruntime', 'openvino'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_processor_of_an_arm_machine_and_of_an_unknown_system(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nFeatures\t: fp asimd sve i8mm\nCPU part\t: 0xd40\n")
    name, flags = _processor(info)
    assert name
    assert flags == ("asimd", "sve", "i8mm")
    name, flags = _processor(tmp_path / "missing")
    assert name and len(flags) == 1


def test_slug_is_a_file_name_and_tells_machines_apart() -> None:
    one = dataclasses.replace(machine(), cpu="Intel(R) Xeon(R) Platinum 8488C / ../x", affinity=8, threads=4)
    assert one.slug == "intel-r-xeon-r-platinum-8488c-x-8-cores-4-threads"
    assert dataclasses.replace(one, threads=1).slug != one.slug
    assert dataclasses.replace(one, cpu="日本").slug == "unknown-8-cores-4-threads"


def test_it_reads_as_one_line() -> None:
    found = Machine(
        "AMD EPYC", ("avx2",), 2, 1, None, 1, {"torch": "2.13.0"}, "3.11.7", "Linux x86_64", "2026-01-31"
    )
    assert (
        str(found)
        == "AMD EPYC, 1 of 2 cores, 1 thread; torch 2.13.0, Python 3.11.7; Linux x86_64; 2026-01-31"
    )
