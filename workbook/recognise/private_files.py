"""Files of embeddings: safetensors, readable by their owner alone (mode 0600).

An embedding tells people apart as a fingerprint does: it is biometric data. A file holds the tensor
``embeddings``, float32 ``(n, C, P)``, and the metadata ``gaitlib``, JSON: ``kind``, ``format``,
``network`` (`Recogniser.fingerprint`), ``rows`` (a list of n objects) and what else the kind has.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gaitlib.system.errors import UserError
from gaitlib.system.files import replacing

FORMAT = 1
SUFFIX = ".safetensors"
COLUMNS = ("subject", "type", "view", "frames", "source")
EMBEDDINGS, GALLERY = "embeddings", "gallery"  # kinds of files
_METADATA = "gaitlib"


@dataclass(frozen=True)
class Embeddings:
    """Embedded walks.

    Attributes:
        table: n rows with COLUMNS.
        features: float32 ``(n, C, P)``.
        network: `Recogniser.fingerprint` of the network.
    """

    table: pd.DataFrame
    features: Tensor
    network: str

    def write(self, path: Path | str) -> tuple[Path, Path]:
        """Write ``<path>.safetensors``, and its rows as ``<path>.csv``; return both paths."""
        path = Path(path)
        if path.suffix != SUFFIX:
            path = path.with_name(path.name + SUFFIX)
        write_private(path, EMBEDDINGS, self.features, self.network, self.table.to_dict("records"))
        rows = path.with_suffix(".csv")
        with replacing(rows, private=True) as part:
            part.write_text(self.table.to_csv(index_label="row"))
        return path, rows


def read_embeddings(path: Path | str) -> Embeddings:
    """Read what `Embeddings.write` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is damaged, or another kind of file.
    """
    features, content = read_private(path, EMBEDDINGS)
    table = pd.DataFrame(content["rows"], columns=list(COLUMNS))
    return Embeddings(table, features, content["network"])


def is_embeddings(path: Path | str) -> bool:
    """Say whether a file holds embeddings, or else is what they are made from."""
    return Path(path).suffix == SUFFIX and Path(path).is_file()


def write_private(
    path: Path | str,
    kind: str,
    features: Tensor,
    network: str,
    rows: Sequence[Mapping[str, Any]],
    **others: Any,
) -> Path:
    """Write embeddings and what belongs to them to a file of mode 0600."""
    content = {"kind": kind, "format": FORMAT, "network": network, "rows": list(rows), **others}
    tensors = {"embeddings": features.detach().cpu().float().contiguous()}
    with replacing(path, durable=True, private=True) as part:
        part.write_bytes(save(tensors, {_METADATA: json.dumps(content)}))
    return Path(path)


def read_private(path: Path | str, kind: str) -> tuple[Tensor, dict[str, Any]]:
    """Return the features ``(n, C, P)`` of a file, and its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is damaged, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no {kind} file at {path}: `gaitlib embed` and `gaitlib enroll` write them"
        )
    try:
        with safe_open(path, "pt") as file:
            content = json.loads((file.metadata() or {}).get(_METADATA, "null"))
            features = file.get_tensor("embeddings") if "embeddings" in file.keys() else None
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    found = content.get("kind") if isinstance(content, dict) else None
    if found != kind:
        raise UserError(f"{path} is no {kind} file" + (f", but of {found}" if found else ""))
    if (form := content.get("format")) != FORMAT:
        raise UserError(f"{path} has format {form!r}, this version reads {FORMAT}")
    rows = content.get("rows")
    if (
        features is None
        or (features.ndim, features.dtype) != (3, torch.float32)
        or not isinstance(rows, list)
        or len(rows) != len(features)
        or not all(isinstance(row, dict) for row in rows)
        or not isinstance(content.get("network"), str)
        or not features.isfinite().all()
    ):
        raise UserError(f"{path} is damaged: its rows and its embeddings do not fit")
    return features, content
