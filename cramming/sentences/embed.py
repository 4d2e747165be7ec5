"""A file's lines as a folder of vectors with its manifest, complete or absent. Not the vectors' computation."""

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from cramming.checks import one_of
from cramming.files import new_folder, sha256, write_json
from cramming.sentences.encoder import SentenceEncoder
from cramming.sentences.texts import Lines

FORMATS = ("npy", "safetensors")
MANIFEST = "manifest.json"


def write_embeddings(
    encoder: SentenceEncoder, text: Path, lines: Lines, out: Path, form: str = "npy", batch: int = 32
) -> dict[str, Any]:
    """Embed the lines of a text and write embeddings.npy or .safetensors, (N, H) float32, and manifest.json.

    Row r is line `lines[r]` of the text, as the manifest says; it also has what the vectors depend on. Returns it.

    Raises:
        UserError: an unknown format, or something is at `out` already.
    """
    one_of("--format", form, FORMATS)
    with new_folder(out) as beside:
        vectors = encoder.encode(lines.texts, batch, progress="embedding")
        file = beside / f"embeddings.{form}"
        if form == "npy":
            np.save(file, vectors)
        else:
            save_file({"embeddings": vectors}, file)
        manifest = {
            "file": file.name,
            "sha256": sha256(file),
            "rows": len(vectors),
            "width": vectors.shape[1],
            "lines": lines.numbers,
            "text": text.name,
            "text_sha256": sha256(text),
            "max_length": encoder.max_length,
            **encoder.identity,
        }
        write_json(beside / MANIFEST, manifest)
    return manifest
