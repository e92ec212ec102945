"""What this process may use of the machine: cores, memory, processor. Works without what only Linux or POSIX has."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Cores of this process: the smaller of its allocation (affinity) and its container's quota, at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _quota()
    return count if quota is None else max(1, min(count, int(quota)))


def _quota(groups: Path = CONTROL_GROUPS, own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Cores that the control groups above this process allow it, the least of them; None without a limit."""
    try:
        # Version 2 has one line, 0::/path; inside a container the path is / and the limit in the root.
        path = re.search(r"^0::/(.*)$", own.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    group = groups / path[1] if path else groups
    limits = []
    for folder in (group, *group.parents):
        if groups not in (folder, *folder.parents):
            break
        for quota_file, period_file in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
            try:
                words = (folder / quota_file).read_text(encoding="utf-8").split()
                if period_file:
                    words += (folder / period_file).read_text(encoding="utf-8").split()
                quota, period = words
                if quota not in ("max", "-1"):
                    limits.append(int(quota) / int(period))
            except (OSError, ValueError, ZeroDivisionError):
                pass  # no such limit here
    return min(limits, default=None)


def available_memory_bytes() -> int | None:
    """Memory new processes may take: the machine's, or the container's limit if that is less; None if nobody says."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, IndexError, ValueError):
        return None
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            left = int(Path(limit).read_text(encoding="utf-8")) - int(Path(used).read_text(encoding="utf-8"))
            available = min(available, max(0, left))
        except (OSError, ValueError):  # no such control group, or no limit ("max")
            pass
    return available


def peak_resident_bytes() -> int | None:
    """Most main memory this process has had so far; None where the system does not say."""
    try:
        # Unlike ru_maxrss, which begins at the peak of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    except (OSError, TypeError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    # Linux counts in kibibytes, macOS in bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def children_cpu_seconds() -> float | None:
    """CPU seconds of the processes that this one started and that have ended; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def processor_name() -> str:
    """As the processor calls itself."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
