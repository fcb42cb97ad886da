"""The run folder, written and read."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from trimtab.errors import DataError
from trimtab.redact import redact
from trimtab.runs.disk import require_space
from trimtab.runs.files import fs, json_lines, read_object, write_atomic
from trimtab.runs.lock import lock, unlock
from trimtab.runs.plain import encode, plain, to_json
from trimtab.runs.tail import cut_rows, cut_torn_line
from trimtab.runs.trackers import make_tracker
from trimtab.runs.watch import Watch
from trimtab.types import Row


class Run:
    """A run folder, made when absent and continued when present.

    >>> import tempfile
    >>> run = Run(Path(tempfile.mkdtemp()) / "run", config={"lr": 0.1})
    >>> run.log(1, {"reward/mean": 0.5})
    >>> read_metrics(run.path)[0]["reward/mean"]
    0.5
    """

    watch = Watch()
    """What this process shows while a stage trains; by default nothing."""

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, Any] | None = None,
        tracker: str = "none",
        project: str = "trimtab",
    ) -> None:
        """Open ``path``; ``config`` (plain values) is written redacted as ``config.yaml``.

        Raises:
            ConfigError: another process writes to it; an unknown tracker, or one whose package is missing.
        """
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        lock(self.path)
        redacted = redact(plain(config or {}))
        if config is not None:
            text = yaml.safe_dump(redacted, sort_keys=False, allow_unicode=True)
            write_atomic(self.path / "config.yaml", encode(text))
        for name in ("metrics.jsonl", "findings.jsonl"):
            cut_torn_line(self.path / name)
        self._tracker = make_tracker(tracker, project, self.path, redacted)
        self._metrics: BinaryIO | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Folder of the finished model in Hugging Face format."""
        return self.path / "model"

    @property
    def samples_path(self) -> Path:
        """Folder of sample tables."""
        return self.path / "samples"

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line of ``metrics`` (slash names) at ``step``; on disk when this returns."""
        row = {"step": step, "time": round(time.time(), 3), **metrics}
        if self._metrics is None:
            self._metrics = fs.open(self.path / "metrics.jsonl", "ab")
        fs.write(self._metrics, encode(to_json(row) + "\n"))
        self._tracker.log(step, plain(metrics))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Write the samples of a step: prompt, completion, reward, scores (as JSON), finish…

        Raises:
            DiskSpaceError: the disk has no room for them; nothing is written.
        """
        data = sample_table(step, rows)
        path = self.samples_path / f"step-{step:08d}.parquet"
        require_space(self.path, len(data), f"the samples of step {step}")
        write_atomic(path, data)
        return path

    def finding(self, finding: Mapping[str, Any]) -> None:
        """Append one finding of the doctor, or of a stage about itself."""
        with fs.open(self.path / "findings.jsonl", "ab") as handle:
            fs.write(handle, encode(to_json(finding) + "\n"))

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Merge figures named with dots into ``summary.json``, nested by name."""
        figures_so_far = read_summary(self.path)
        for name, value in figures.items():
            *parents, last = name.split(".")
            place = figures_so_far
            for parent in parents:
                inner = place.get(parent)
                place[parent] = place = inner if isinstance(inner, dict) else {}
            place[last] = value
        write_atomic(self.path / "summary.json", encode(to_json(figures_so_far, indent=2) + "\n"))

    def rewind(self, step: int) -> None:
        """Forget what was recorded after ``step``, before going on from its checkpoint."""
        self._release()
        cut_rows(self.path / "metrics.jsonl", lambda row: (row.get("step") or 0) > step)
        findings = self.path / "findings.jsonl"
        if findings.exists():
            rows = [row for row in _read_lines(findings) if (row.get("step") or 0) <= step]
            write_atomic(findings, b"".join(encode(to_json(row) + "\n") for row in rows))
        for path in self.samples_path.glob("step-*.parquet"):
            if int(path.stem.removeprefix("step-")) > step:
                fs.remove(path)

    def close(self) -> None:
        """Finish the tracker, close open files and unlock the folder."""
        self._release()
        self._tracker.close()
        unlock(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            self.watch.end(error)
        self.close()

    def _release(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None


class SilentRun(Run):
    """A run folder that another rank writes: nothing is written here."""

    def __init__(self, path: str | Path) -> None:  # pyright: ignore[reportMissingSuperCall]
        self.path = Path(path)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Nothing."""

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Nothing; the path where the other rank writes them."""
        return self.samples_path / f"step-{step:08d}.parquet"

    def finding(self, finding: Mapping[str, Any]) -> None:
        """Nothing."""

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Nothing."""

    def rewind(self, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def sample_table(step: int, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The samples of a step as a Parquet file."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    columns: dict[str, list[Any]] = {"step": [step] * len(rows)}
    for name in names:
        columns[name] = [_cell(row.get(name)) for row in rows]
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def _cell(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, (dict, list)):
        value = to_json(value)
    return encode(value).decode() if isinstance(value, str) else value


def _read_lines(path: Path) -> list[Row]:
    rows: list[Row] = []
    data = path.read_bytes() if path.exists() else b""
    for number, line in json_lines(data):
        try:
            row = json.loads(line)
        except ValueError as error:
            if data.endswith(line):  # torn by a crash: the line never ended
                break
            raise DataError(
                f"{path}, line {number}: not JSON ({error}); remove the line"
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: not a JSON object; remove the line")
        rows.append(cast(dict[str, Any], row))
    return rows


def read_metrics(path: str | Path) -> list[Row]:
    """Lines of ``metrics.jsonl`` in the run folder ``path``; a torn last line is left out.

    Raises:
        DataError: a line in the middle is not a JSON object.
    """
    return _read_lines(Path(path) / "metrics.jsonl")


def read_findings(path: str | Path) -> list[Row]:
    """Lines of ``findings.jsonl``, as ``read_metrics``."""
    return _read_lines(Path(path) / "findings.jsonl")


def read_summary(path: str | Path) -> dict[str, Any]:
    """``summary.json`` of the run folder ``path``, as ``read_object``."""
    return read_object(Path(path) / "summary.json")


def read_samples(path: str | Path, steps: Iterable[int] | None = None) -> list[Row]:
    """Rows of the sample tables in step order (of ``steps`` only when given); scores decoded.

    Raises:
        DataError: a table cannot be read.
    """
    wanted = None if steps is None else set(steps)
    rows: list[Row] = []
    for file in sorted((Path(path) / "samples").glob("step-*.parquet")):
        if wanted is not None and int(file.stem.removeprefix("step-")) not in wanted:
            continue
        try:
            table = pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: not a readable table ({error}); remove it") from error
        for row in table.to_pylist():
            if isinstance(row.get("scores"), str):
                row["scores"] = json.loads(row["scores"])
            rows.append(row)
    return rows
