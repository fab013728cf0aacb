"""Get the test images of Pillow's source distribution: a thousand odd, broken and hostile files for the decoder.

python scripts/fetch_pillow_images.py data/pillow-images
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sdist", type=Path, help="a pillow-*.tar.gz that is here already")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sdist = options.sdist or download(Path(scratch))
        count = unpack(sdist, options.folder)
    print(f"{count} files of {sdist.name} in {options.folder}")


def download(scratch: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-binary",
        ":all:",
        "--no-deps",
        "pillow",
        "-d",
        str(scratch),
    ]
    subprocess.run(command, check=True)
    return next(scratch.glob("pillow-*.tar.gz"))


def unpack(sdist: Path, folder: Path) -> int:
    """Write the files below Tests/images, without what else the archive holds."""
    count = 0
    with tarfile.open(sdist) as archive:
        for member in archive:
            parts = PurePosixPath(member.name).parts
            if not member.isfile() or parts[1:3] != ("Tests", "images") or ".." in parts:
                continue
            target = folder.joinpath(*parts[3:])
            target.parent.mkdir(parents=True, exist_ok=True)
            content = archive.extractfile(member)
            assert content is not None
            target.write_bytes(content.read())
            count += 1
    return count


if __name__ == "__main__":
    main()
