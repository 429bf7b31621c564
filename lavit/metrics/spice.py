"""SPICE (arXiv 1607.08822) by its own jar, which pycocoevalcap carries.

The jar needs Java and Stanford CoreNLP 3.6.0, 400 MB that pycocoevalcap would download unasked; here SPICE runs only
where these jars lie beside it already. pycocoevalcap's wrapper is not called: it writes into the installed package.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lavit.metrics.ptb import JAR, java_runs

FOLDER = JAR.parents[1] / "spice"
CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
ARCHIVE = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"


def spice_missing() -> str | None:
    """What keeps SPICE from running and what to do about it; None where nothing does."""
    if not java_runs():
        return "not run: SPICE needs a `java` that runs"
    if missing := [name for name in CORENLP if not (FOLDER / "lib" / name).is_file()]:
        return f"not run: SPICE needs {' and '.join(missing)}, from {ARCHIVE}, in {Path('pycocoevalcap/spice/lib')}"
    return None


def spice_values(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> NDArray[np.float64]:
    """The F-scores (N,) in [0, 1] of N tokenized candidates, each beside its tokenized references.

    Minutes for thousands of images. Errors: RuntimeError where the jar fails.
    """
    rows = [
        {"image_id": n, "test": candidate, "refs": list(several)}
        for n, (several, candidate) in enumerate(zip(references, candidates, strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        given, taken = Path(folder) / "given.json", Path(folder) / "taken.json"
        given.write_text(json.dumps(rows), encoding="utf-8")
        command = ["java", "-Dfile.encoding=UTF-8", "-jar", "-Xmx8G", "spice-1.0.jar", str(given)]
        done = subprocess.run([*command, "-out", str(taken), "-subset", "-silent"], cwd=FOLDER, capture_output=True)
        if done.returncode != 0 or not taken.is_file():
            raise RuntimeError(f"SPICE failed ({done.returncode}): {done.stderr.decode('utf-8', 'replace')[-500:]}")
        found = {row["image_id"]: row["scores"]["All"]["f"] for row in json.loads(taken.read_text(encoding="utf-8"))}
    if found.keys() != set(range(len(rows))):
        raise RuntimeError(f"SPICE answered for {len(found)} of {len(rows)} images")
    return np.array([found[n] for n in range(len(rows))], dtype=np.float64)
