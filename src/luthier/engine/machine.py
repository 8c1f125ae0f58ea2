"""What this machine is and can do: device, precision, memory, environment."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

NARROW = 256  # below this width casting costs more than bf16 products save on a CPU


def pick_device(wanted: str) -> torch.device:
    """auto: CUDA, then MPS, then the CPU."""
    if wanted != "auto":
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_precision(wanted: str, device: torch.device, width: int, memory: Path) -> str:
    """fp32 or bf16 (autocast; weights and optimizer stay fp32).

    auto takes bf16 where the device has it in hardware and it pays: on a CPU a layer of the model's width is timed
    once in both, and the answer is kept in `memory`, so that two runs on one machine decide alike.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu" or width < NARROW or not _cpu_has_bf16():
        return "fp32"
    file = memory / "machine.json"
    key = f"{platform.processor() or platform.machine()}|torch {torch.__version__}|bf16 at width {width}"
    known: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(file.read_text(encoding="utf-8"))
    if key not in known:
        known[key] = round(_bf16_gain(width), 3)
        with contextlib.suppress(OSError):
            memory.mkdir(parents=True, exist_ok=True)
            temporary = file.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(known, indent=1), encoding="utf-8")
            os.replace(temporary, file)
    return "bf16" if known[key] >= 1.25 else "fp32"


def _cpu_has_bf16() -> bool:
    probes = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(probe() for probe in probes if probe is not None)


def _bf16_gain(width: int) -> float:
    """Time of a two-layer MLP step, fp32 over bf16 autocast; the least of five each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = torch.nn.Sequential(
            torch.nn.Linear(width, 4 * width), torch.nn.GELU(), torch.nn.Linear(4 * width, width)
        )
        rows = torch.randn(256, width)
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(6):
        for enabled in (True, False):
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                out = layers(rows)
            torch.autograd.grad(out.float().sum(), list(layers.parameters()))
            times[enabled].append(time.perf_counter() - start)
    return min(times[False][1:]) / max(min(times[True][1:]), 1e-9)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context of a forward pass in this precision."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


class PeakMemory:
    """Peak memory since `start`, above what was in use then.

    On CUDA: allocated by torch. On Linux: resident set, whose high-water mark is reset first. Elsewhere: the
    high-water mark of the whole process, which earlier work may have set.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._base = device, 0

    def start(self) -> None:
        """Begin to watch; what torch loads for its first optimizer is loaded before, since it is not the run's."""
        torch.optim.AdamW([torch.zeros(1, requires_grad=True)], fused=self.device.type in ("cpu", "cuda"))
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._base = torch.cuda.memory_allocated()
            return
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._base = _status("VmRSS")

    def peak(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated() - self._base)
        return max(0, _status("VmHWM") - self._base)


def _status(field: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """Versions and machine, for the record; nothing of the user's environment variables."""
    packages = (
        "luthier",
        "torch",
        "transformers",
        "peft",
        "datasets",
        "safetensors",
        "scikit-learn",
        "numpy",
    )
    versions = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "python": platform.python_version(),
        **versions,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": precision,
    }
