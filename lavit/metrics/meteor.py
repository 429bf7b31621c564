"""METEOR 1.5 (Denkowski and Lavie, WMT 2014) by its own jar, which pycocoevalcap carries and which needs Java.

The jar aligns a candidate with each reference by equal words, stems, synonyms and paraphrases, and counts for the
reference that fits best; a score is made of those counts, of one image or summed over all. pycocoevalcap's wrapper is
not called: it waits for the jar line by line, for ever if the jar fails, and takes the encoding from the locale.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lavit.metrics.ptb import JAR, java_runs

FOLDER = JAR.parents[1] / "meteor"
COUNTS = 23  # words and function words of candidate and reference; matches of four kinds; chunks, words matched
# English, tuned for ranking: the jar's own for `-l en`.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # of equal words, stems, synonyms, paraphrases


def meteor_missing() -> str | None:
    """What keeps METEOR from running; None where nothing does."""
    return None if java_runs() else "not run: METEOR needs a `java` that runs"


def meteor_counts(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> NDArray[np.float64]:
    """The jar's counts (N, 23) of N tokenized candidates, each beside its tokenized references.

    One process for all; it takes some seconds to start. Errors: RuntimeError where Java fails or does not answer.
    """
    lines = [
        " ||| ".join(["SCORE", *several, candidate.replace("|||", "").replace("  ", " ")])
        for several, candidate in zip(references, candidates, strict=True)
    ]
    command = ["java", "-Dfile.encoding=UTF-8", "-jar", "-Xmx2G", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en"]
    try:
        done = subprocess.run(
            [*command, "-norm"],
            cwd=FOLDER,
            input=("\n".join(lines) + "\n").encode("utf-8", "replace"),
            capture_output=True,
            timeout=300 + len(lines),
        )
    except subprocess.TimeoutExpired as late:
        raise RuntimeError(f"METEOR did not answer within {late.timeout:.0f} s") from None
    found = [line.split() for line in done.stdout.decode("utf-8").splitlines() if line.strip()]
    if done.returncode != 0 or len(found) != len(lines) or any(len(line) != COUNTS for line in found):
        said = done.stderr.decode("utf-8", "replace")[-500:]
        raise RuntimeError(f"METEOR answered {len(found)} lines to {len(lines)} ({done.returncode}): {said}")
    counts = np.array(found, dtype=np.float64)
    # A candidate that matches word for word is not in pieces; the jar, too, does not add its one chunk to the others'.
    counts[(counts[:, :2] == counts[:, 21:]).all(axis=1) & (counts[:, 20] == 1), 20] = 0
    return counts


def meteor_scores(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores (R,) in [0, 1] of counts (R, 23): (1 − γ fragmentation^β) × the weighted mean of precision and recall."""
    words, function = counts[:, :2], counts[:, 2:4]  # of candidate, reference
    content_matched = counts[:, 4:20].reshape(-1, 4, 4)[:, :, :2]
    function_matched = counts[:, 4:20].reshape(-1, 4, 4)[:, :, 2:]
    chunks, matched = counts[:, 20], counts[:, 21:23]
    found = np.einsum("k,rks->rs", WEIGHTS, DELTA * content_matched + (1 - DELTA) * function_matched)
    whole = DELTA * (words - function) + (1 - DELTA) * function
    precision, recall = (found / np.where(whole > 0, whole, 1)).T
    mean = ALPHA * precision + (1 - ALPHA) * recall
    mean = precision * recall / np.where(mean > 0, mean, 1)
    average = matched.mean(axis=1)
    return mean * (1 - GAMMA * (chunks / np.where(average > 0, average, 1)) ** BETA)
