"""The example for Slurm, as its first lines say to use it, with stand-ins for sbatch and srun."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import open_cache
from pipeline.embedding.settings import RunSettings
from pipeline.stages.extract import ExtractSettings, extract

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm_extract.sbatch"
OPTIONS = "--backbone timm/test_vit --weights random --engine torch --precision float32 --workers 1"

# Takes --array from the command line or the script's own lines, runs the tasks one after the other, prints a job
# number; a dependent job runs when all went well.
SBATCH = """#!/bin/bash
set -euo pipefail
while [[ $1 == --* ]]; do
    case $1 in
        --wrap) bash -c "$2"; exit ;;
        --dependency=afterok:17) shift ;;
        --array=*) array=${1#--array=}; shift ;;
        --parsable) shift ;;
        *) echo "unknown option $1" >&2; exit 1 ;;
    esac
done
array=${array:-$(sed -n 's/^#SBATCH --array=//p' "$1")}
for task in $(seq "${array%-*}" "${array#*-}"); do
    SLURM_ARRAY_TASK_ID=$task bash "$@" >&2
done
echo 17
"""


@pytest.mark.slow
def test_the_example_makes_the_file_that_one_run_makes(image_folder: Path, tmp_path: Path) -> None:
    tools = {"sbatch": SBATCH, "srun": '#!/bin/bash\nexec "$@"\n'}
    tools["pipeline"] = f'#!/bin/bash\nexec {sys.executable} -m pipeline "$@"\n'
    (tmp_path / "bin").mkdir()
    for name, text in tools.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    shutil.copytree(image_folder, tmp_path / "photos")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(50))
    commands = re.findall(r"^#     (.*)$", SCRIPT.read_text(), re.MULTILINE)
    assert len(commands) == 4
    commands = commands[:2]  # the others watch an array and start what is left of it again
    commands[0] = (
        commands[0].replace("photos.h5)", f"photos.h5 {OPTIONS})").replace("--parsable", "--parsable --array=1-2")
    )
    done = subprocess.run(
        ["bash", "-c", "set -e\n" + "\n".join(commands).replace("scripts/slurm_extract.sbatch", str(SCRIPT))],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(SCRIPT.parents[1]),
            "SHARDS": "2",
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 3, done.stderr  # of the merge: an image failed
    assert sorted(path.name for path in tmp_path.glob("*.h5")) == ["photos-1.h5", "photos-2.h5", "photos.h5"]
    settings = ExtractSettings(
        "timm/test_vit", "random", run=RunSettings(engine="torch", precision="float32", workers=1)
    )
    extract(str(tmp_path / "photos"), tmp_path / "whole.h5", settings)
    merged, whole = open_cache(tmp_path / "photos.h5"), open_cache(tmp_path / "whole.h5")
    assert merged.embeddings.tobytes() == whole.embeddings.tobytes()
    assert merged.keys.tolist() == whole.keys.tolist()
    assert merged.status.tolist() == whole.status.tolist()


def test_the_example_asks_for_as_many_tasks_as_shards() -> None:
    text = SCRIPT.read_text()
    assert re.findall(r"^#SBATCH --array=1-(\d+)$", text, re.MULTILINE) == re.findall(r"SHARDS:-(\d+)", text)
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0
