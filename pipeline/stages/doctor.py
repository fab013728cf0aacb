"""``pipeline doctor``: is this machine fit for the work, and what to do where it is not.

Findings name no path, host or user, so that they can be sent to others.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.backbones import load_backbone
from pipeline.cache import write_lock
from pipeline.cache.lease import Lease
from pipeline.core.devices import device_precisions, has_cuda, may_have_gpu, pick_devices
from pipeline.core.system import DISTRIBUTION, cache_folder, processor_count, versions_of
from pipeline.engines import open_engine, selfcheck
from pipeline.engines.agreement import LEAST_COSINE
from pipeline.errors import PipelineError, first_line
from pipeline.sources.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.backbones.base import Backbone

VERSIONS = (
    DISTRIBUTION,
    "torch",
    "torchvision",
    "timm",
    "openvino",
    "numpy",
    "scikit-learn",
    "h5py",
    "pillow",
    "simplejpeg",
)
EXTENSIONS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile")
IMAGES = 16
"""How many images engines are compared on."""
SECONDS_OF_SPEED = 1.0
DISK_BYTES = 64 << 20
LEAST_MEMORY, LEAST_DISK = 4 << 30, 5 << 30
SLOW_DISK = 50e6
"""Bytes/s below which writing a cache may be slower than a network."""
SLOW_LOOK_SECONDS = 1.0


class Verdict(StrEnum):
    """What a finding means."""

    OK = "ok"
    SLOW = "slow"
    WRONG = "wrong"
    ABSENT = "absent"
    """An optional part that is not installed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the report.

    Attributes
    ----------
    what : str
    verdict : Verdict
    found : str
    advice : str
        What to do; empty where all is well.
    """

    what: str
    verdict: Verdict
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:<6}  {self.what}: {self.found}" + (f"; {self.advice}" if self.advice else "")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, and what is installed."""

    findings: tuple[Finding, ...]
    versions: dict[str, str]

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.verdict != Verdict.WRONG for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON-like data."""
        return {
            "system": f"{platform.system()} {platform.machine()}",
            "versions": self.versions,
            "findings": [asdict(finding) for finding in self.findings],
        }


def diagnose(
    folder: str | os.PathLike[str] = ".",
    stores: Sequence[str] = (),
    *,
    found: Callable[[Finding], None] = lambda finding: None,
) -> Diagnosis:
    """Look at this machine.

    Parameters
    ----------
    folder : path
        Where caches are to be written.
    stores : sequence of str
        URLs that are to be reached; no other connection is opened.
    found : callable
        Called with each finding, as soon as it is there.
    """
    findings = []
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("processor", _processor),
        ("memory", _memory),
        ("GPU", _gpu),
        ("engines", _engines),
        ("disk of the caches", lambda: _disk("disk of the caches", Path(folder), locks=True)),
        ("disk of the networks", lambda: _disk("disk of the networks", _existing(cache_folder()), locks=False)),
        ("optional parts", _extras),
        *(
            (f"store {number}", lambda url=url, number=number: _store(number, url))
            for number, url in enumerate(stores, 1)
        ),
    ]
    for what, check in checks:
        try:
            for finding in check():
                findings.append(finding)
                found(finding)
        except Exception as error:  # a broken installation raises anything
            findings.append(Finding(what, Verdict.WRONG, _private(first_line(error)), "repair it, then run this again"))
            found(findings[-1])
    return Diagnosis(tuple(findings), versions_of(VERSIONS))


def _processor() -> Iterator[Finding]:
    model, flags = platform.processor() or platform.machine(), set[str]()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        facts = dict(re.findall(r"^(model name|flags)\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE))
        model, flags = facts.get("model name", model), set(facts.get("flags", "").split())
    count = processor_count()
    named = ", ".join(name for name in EXTENSIONS if name in flags) or "none known"
    text = f"{count} × {model}; vector extensions: {named}"
    if flags and "avx2" not in flags and platform.machine() in ("x86_64", "AMD64"):
        yield Finding("processor", Verdict.SLOW, text, "a processor with AVX2 is several times as fast")
    elif count == 1:
        yield Finding("processor", Verdict.SLOW, text, "decoding and the network share it: allow more processors")
    else:
        yield Finding("processor", Verdict.OK, text)


def _memory() -> Iterator[Finding]:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return
    limits = [total]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = Path(file).read_text().strip() if Path(file).exists() else "max"
        limits += [int(text)] if text.isdecimal() else []
    usable = min(limits)
    text = f"{usable / 2**30:.1f} GiB" + (" (limited by a control group)" if usable < total else "")
    if usable < LEAST_MEMORY:
        yield Finding("memory", Verdict.SLOW, text, "use few --workers and a small --batch-size")
    else:
        yield Finding("memory", Verdict.OK, text)


def _gpu() -> Iterator[Finding]:
    if not may_have_gpu():
        yield Finding("GPU", Verdict.OK, "none, so networks run on the processor")
        return
    if not has_cuda():
        import torch  # loaded by the question above

        if torch.backends.mps.is_available():
            yield Finding("GPU", Verdict.OK, "Apple's (mps)")
        elif any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/nvidia0")):
            advice = "install a build of torch for this driver, or a newer driver"
            yield Finding(
                "GPU", Verdict.WRONG, f"its driver is there, but torch {torch.__version__} cannot use it", advice
            )
        else:
            yield Finding("GPU", Verdict.OK, "none that torch knows, so networks run on the processor")
        return
    import torch  # loaded by the question above

    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        text = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, capability {facts.major}.{facts.minor}"
        text += f", CUDA {torch.version.cuda}"
        if (facts.major, facts.minor) < (7, 0):
            yield Finding(f"GPU {i}", Verdict.SLOW, text, "it has no fast float16 or bfloat16")
        else:
            yield Finding(f"GPU {i}", Verdict.OK, text)


def _engines() -> Iterator[Finding]:
    backbone = load_backbone()
    images = _smooth_images(backbone.preprocess.shape)
    expected = selfcheck.reference(backbone, images)
    for name, device, precision in _combinations():
        what = f"engine {name} on {device} in {precision}"
        try:
            cosine, rate = _try(backbone, images, expected, name, device, precision)
        except PipelineError as error:
            yield Finding(what, Verdict.WRONG, _private(first_line(error)), "use another --engine")
            continue
        text = f"least cosine {cosine:.5f} to the reference, {rate:.0f} images/s with {backbone.name}"
        if cosine >= LEAST_COSINE[precision]:
            yield Finding(what, Verdict.OK, text)
        elif precision == "float32":
            yield Finding(what, Verdict.WRONG, text, f"use another --engine than {name}, and report this")
        else:
            yield Finding(what, Verdict.OK, text, "--precision auto does not take it where images give such a cosine")


def _combinations() -> Iterator[tuple[str, str, str]]:
    """Yield (engine, device, precision) worth trying here."""
    try:
        from pipeline.engines.openvino import supported_precisions  # OpenVINO may not be installed

        yield from (("openvino", "cpu", precision) for precision in supported_precisions())
    except ModuleNotFoundError:
        pass
    yield "torch", "cpu", "float32"
    if has_cuda():
        yield from (("torch", "cuda", precision) for precision in device_precisions(pick_devices("cuda")[0]))


def _try(
    backbone: Backbone,
    images: NDArray[np.uint8],
    expected: dict[str, NDArray[Any]],
    name: str,
    device: str,
    precision: str,
) -> tuple[float, float]:
    """Return the least cosine of an engine, and its images/s."""
    engine = open_engine(backbone, engine=name, device=device, precision=precision)
    try:
        cosine = selfcheck.check(engine, images, expected)
        batch = np.resize(images, (engine.batch_size, *images.shape[1:]))
        count, started = 0, time.perf_counter()
        while (passed := time.perf_counter() - started) < SECONDS_OF_SPEED:
            for future in [engine.submit(batch) for _ in range(engine.in_flight)]:
                count += len(next(iter(future.result().values())))
        return cosine, count / passed
    finally:
        engine.close()


def _smooth_images(shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return made-up images (n, H, W, 3) with large and small structures, as photographs have."""
    rng = np.random.default_rng(0)
    height, width, channels = shape
    total = np.zeros((IMAGES, height, width, channels))
    for cells in (2, 8, 32):
        rows, columns = (np.arange(n) * cells // n for n in (height, width))
        total += rng.uniform(0, 1, (IMAGES, cells, cells, channels))[:, rows][:, :, columns]
    return (total * 85).astype(np.uint8)


def _disk(what: str, folder: Path, *, locks: bool) -> Iterator[Finding]:
    free, how = shutil.disk_usage(folder).free, ""
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as name:
        if locks:
            with write_lock(Path(name) / "c.h5") as lock:
                how = ", no locks: leases take their place" if isinstance(lock, Lease) else ", locks work"
        data, started = os.urandom(1 << 20), time.perf_counter()
        with (Path(name) / "data").open("wb") as file:
            for _ in range(DISK_BYTES >> 20):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        rate = DISK_BYTES / (time.perf_counter() - started)
    text = f"{free / 2**30:.0f} GiB free, {rate / 1e6:.0f} MB/s written and synced" + how
    if free < LEAST_DISK:
        yield Finding(what, Verdict.SLOW, text, "a million embeddings of 1280 values take 5 GiB: make room")
    elif rate < SLOW_DISK:
        yield Finding(what, Verdict.SLOW, text, "a local disk would be faster")
    else:
        yield Finding(what, Verdict.OK, text)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _extras() -> Iterator[Finding]:
    """Yield whether each optional part of the package is installed, by its metadata."""
    parts: dict[str, list[str]] = {}
    for line in metadata.requires(DISTRIBUTION) or []:
        if (extra := re.search(r"extra == [\"']([\w-]+)[\"']", line)) and extra[1] not in ("dev", "docs", "browser"):
            parts.setdefault(extra[1], []).append(re.split(r"[\s\[;<>=!~(]", line, maxsplit=1)[0])
    for name, needed in sorted(parts.items()):
        missing = [one for one in needed if not versions_of([one]).get(one)]
        if missing:
            what = f"without {', '.join(missing)}"
            yield Finding(f"extra {name}", Verdict.ABSENT, what, f"where needed: pip install '{DISTRIBUTION}[{name}]'")
        else:
            yield Finding(f"extra {name}", Verdict.OK, "installed")


def _store(number: int, url: str) -> Iterator[Finding]:
    what, started = f"store {number} ({url.partition('://')[0]})", time.perf_counter()
    try:
        store, path = open_store(url)
        there = store.is_folder(path) or bool(store.look(path))
    except (PipelineError, OSError) as error:
        yield Finding(what, Verdict.WRONG, _private(first_line(error), url), "check the URL, credentials and network")
        return
    seconds = time.perf_counter() - started
    text = f"{'reached' if there else 'empty'}, first answer after {seconds * 1000:.0f} ms"
    if seconds > SLOW_LOOK_SECONDS:
        yield Finding(what, Verdict.SLOW, text, "compute nearer to it, or copy the images once")
    else:
        yield Finding(what, Verdict.OK, text)


def _private(text: str, *secrets: str) -> str:
    """Replace paths and what is named."""
    for secret in (*secrets, *(secret.partition("://")[2] for secret in secrets if "://" in secret)):
        text = text.replace(secret, "…") if secret else text
    return re.sub(r"(?<![\w:/])(?:~|[A-Za-z]:)?[/\\][^\s:;,'\"]+", "…", text)
