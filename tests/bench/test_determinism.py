"""The same seed gives the same bytes in a new process with another hash seed, and the same number of threads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import sipp_bench

# Every method, on a network whose matrix products are large enough that torch shares them out among threads.
SCRIPT = """
import hashlib, json, sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[1]))
import sipp_bench as sb
from sipp_bench.bench.runner import run
from sipp_bench.bench.suite import parse_suite
from sipp_bench.zoo import data, training
folder, found = Path(sys.argv[2]), {}
hashed = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
part = data.load("digits").points
model = training.trained_model("lenet-300-100", data.load("digits"), cache_dir=folder.parent / "cache").model
for name in sb.list_methods():
    pruned = sb.prune(model, part.images, method=name, keep=0.1, seed=3)
    saved = [hashed(pruned.save(folder / f"{name}{end}")) for end in (".safetensors", ".pt")]
    found[name] = [pruned.mask_sha256, *saved]
methods = "".join(f'[[method]]\\nname = "{name}"\\n' for name in ("sipp-hybrid", "wanda", "snip"))
target = '[[target]]\\nnetwork = "lenet-300-100"\\ndata = "digits"\\n'
suite = parse_suite('name = "x"\\nseeds = [0]\\nkeep = [0.5, 0.1]\\n' + target + methods, "x")
run(suite, folder / "run", cache_dir=folder.parent / "cache", progress=False)
cells = [file for file in (folder / "run" / "cells").iterdir() if not file.name.endswith(".timing.json")]
print(json.dumps(found | {file.name: hashed(file) for file in cells}))
"""


def outcome(folder: Path, threads: int, hash_seed: int) -> dict[str, object]:
    folder.mkdir()
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", SCRIPT, str(threads), str(folder)]
    place = Path(sipp_bench.__file__).parents[1]
    done = subprocess.run(command, env=environment, cwd=place, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def test_processes_and_hash_seeds_change_no_byte_and_threads_none_where_no_activation_counts(tmp_path: Path) -> None:
    expected = outcome(tmp_path / "one", threads=1, hash_seed=0)
    assert len(expected) == len(sipp_bench.list_methods()) + 2 * 3 + 2 * 3 + 2
    again = outcome(tmp_path / "again", threads=1, hash_seed=4294967295)
    assert {key for key in expected | again if expected.get(key) != again.get(key)} == set()
    # Sums over a network's activations are split among threads, and with them their rounding.
    two = outcome(tmp_path / "two", threads=2, hash_seed=1)
    assert two.keys() == expected.keys()
    for name in ("magnitude", "random"):
        assert two[name] == expected[name]
