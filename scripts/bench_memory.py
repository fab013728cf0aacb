"""Measure the memory of `pipeline extract`, and whether it grows with the number of images.

    python scripts/bench_memory.py [--images 1000 20000] [--size 500x375] [--json FILE] [-- OPTIONS OF EXTRACT]

Runs the command itself on folders of JPEGs and samples the proportional set size (PSS: memory that processes share
counts once) of all its processes together. Linux only: it reads /proc/PID/smaps_rollup.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from bench_extract import make_images

SAMPLE_EVERY_S = 0.2
DISTINCT = 200


def fill(folder: Path, count: int, width: int, height: int) -> None:
    """Write ``count`` JPEGs of different bytes: some photographs, then copies with a number behind their end."""
    make_images(folder, min(count, DISTINCT), width, height)
    photographs = [file.read_bytes() for file in sorted(folder.glob("*.jpg"))]
    for i in range(DISTINCT, count):
        (folder / f"{i:05d}.jpg").write_bytes(photographs[i % DISTINCT] + i.to_bytes(8, "big"))


def tree_bytes(process: psutil.Process) -> int:
    """Return the proportional set size of a process and all below it."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{member.pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def peak(folder: Path, options: list[str]) -> tuple[float, float, float]:
    """Return the peak of a run in MB, the median of its second half, and images/s."""
    samples = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "pipeline", "extract", str(folder), "-o", str(Path(out) / "c.h5"), *options]
        running = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while running.poll() is None:
            try:
                samples.append(tree_bytes(running))
            except psutil.NoSuchProcess:
                break
            time.sleep(SAMPLE_EVERY_S)
        if running.wait():
            raise SystemExit(f"extract failed: {' '.join(command)}")
    late = sorted(samples[len(samples) // 2 :])
    rate = len(list(folder.iterdir())) / (time.perf_counter() - started)
    return max(samples) / 1e6, late[len(late) // 2] / 1e6, rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 20000])
    parser.add_argument("--size", default="500x375")
    parser.add_argument("--json", type=Path)
    parser.add_argument("options", nargs="*", help="for pipeline extract, behind --")
    arguments = parser.parse_args()
    width, height = (int(n) for n in arguments.size.split("x"))
    rows = []
    for count in arguments.images:
        with tempfile.TemporaryDirectory() as name:
            fill(Path(name), count, width, height)
            highest, late, rate = peak(Path(name), arguments.options)
        rows.append(
            {"images": count, "peak_mb": round(highest), "second_half_mb": round(late), "images_s": round(rate, 1)}
        )
        print(rows[-1], flush=True)
    print("\n| images | peak, MB | median of the second half, MB |\n|---|---|---|")
    for row in rows:
        print(f"| {row['images']} | {row['peak_mb']} | {row['second_half_mb']} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
