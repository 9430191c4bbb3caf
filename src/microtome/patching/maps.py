"""Maps of effects as labelled arrays, and as pictures: a grid for each part, its guard beside it, the largest cells.

For a part `P` a result holds `P` (raw effects of every prompt), `P_normalised` (mean raw effect over the mean gap
between the two runs: 1 = the patch did all), `P_significant`, and `P_percentile` (off-distribution, by place).
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import xarray as xr

from microtome.core.answers import NodeScores
from microtome.core.shapes import Cell, Grid, Table
from microtome.patching import protocol
from microtome.patching.cells import Map
from microtome.patching.contrast import Contrast, share
from microtome.patching.effects import WHERE, Effects
from microtome.patching.off_distribution import LIMIT

_TOP: Final = 20


def dataset(
    contrast: Contrast,
    cases: Sequence[str],
    gaps: Sequence[float],
    charts: Sequence[Map],
    found: Sequence[Sequence[Effects]],
    baseline: Sequence[str],
) -> xr.Dataset:
    """Everything that a result holds: the arrays of each map, both plain metrics, the protocol.

    found: for each map the effects of each case (direction). gaps: for each case what 1 means when normalised.
    """
    arrays: dict[str, xr.DataArray] = {}
    for chart, effects in zip(charts, found, strict=True):
        arrays |= _arrays(chart, cases, effects, gaps)
    parts = [chart.part for chart in charts]
    percentiles = np.concatenate([arrays[f"{part}_percentile"].values.ravel() for part in parts])
    tested = sum(arrays[f"{part}_significant"].size for part in parts)
    items = protocol.checklist(contrast, cases, baseline, tested, percentiles)
    made = xr.Dataset(arrays | contrast.metrics, attrs={"parts": parts, "metric": contrast.metric.name})
    return made.assign(protocol.stored(items))


def _arrays(
    cells: Map, cases: Sequence[str], found: Sequence[Effects], gaps: Sequence[float]
) -> dict[str, xr.DataArray]:
    """The arrays of one part; cases (directions) along their own dimension."""
    raw = np.stack([effects.raw.double().cpu().numpy() for effects in found])
    percentile = np.stack([effects.percentile.double().numpy() for effects in found], axis=1)
    shape = (len(cases), *cells.shape)
    coords = {"direction": list(cases), **dict(zip(cells.dims, map(list, cells.coords), strict=True))}
    dims = ("direction", *cells.dims)
    part = cells.part
    made = {
        part: xr.DataArray(raw.reshape(*shape, -1), coords, (*dims, "row")),
        f"{part}_normalised": xr.DataArray(
            np.stack([share(r, gap) for r, gap in zip(raw, gaps, strict=True)]).reshape(shape), coords, dims
        ),
        f"{part}_significant": xr.DataArray(
            np.stack([protocol.significant(r) for r in raw]).reshape(shape), coords, dims
        ),
        f"{part}_percentile": xr.DataArray(
            percentile.reshape(2, *shape), coords | {"where": list(WHERE)}, ("where", *dims)
        ),
    }
    if "position" in cells.dims:
        token = ("position", list(cells.labels))
        made = {name: array.assign_coords(token=token) for name, array in made.items()}
    return made


def grids(data: xr.Dataset, part: str, title: str) -> tuple[Grid, ...]:
    """The normalised effects of a part, and the percentiles of the final stream that follows from each cell."""
    effect, percentile = data[f"{part}_normalised"], data[f"{part}_percentile"].sel(where=WHERE[1])
    n = data.sizes["row"]
    marked = int((data[f"{part}_percentile"] > LIMIT).any("where").sum())
    return (
        _grid(
            effect,
            f"{title}: {part}",
            f"mean over {n} prompts; 1 = all of the difference between the two runs; {marked} of {effect.size} cells "
            f"are off-distribution (beyond the {LIMIT:.0f}th percentile)",
            "normalised effect",
            diverging=True,
        ),
        _grid(
            percentile,
            f"{title}: {part}, off-distribution",
            "percentile of the final stream's distance among held-out natural ones; median prompt",
            "percentile",
            diverging=False,
        ),
    )


def _grid(array: xr.DataArray, title: str, caption: str, unit: str, diverging: bool) -> Grid:
    """Cases as panels, layers as rows; where there are three axes, layer and position share the rows."""
    *rows, column = (str(dim) for dim in array.dims if dim != "direction")
    cases = tuple(str(case) for case in array["direction"].values)
    values = array.transpose("direction", *rows, column).values
    labels = [_labels(array, dim) for dim in rows]
    joined = labels[0] if len(labels) == 1 else tuple(f"{a} {b}" for a in labels[0] for b in labels[1])
    return Grid(
        title,
        values.reshape(len(cases), len(joined), -1),
        " × ".join(rows),
        joined,
        column,
        _labels(array, column),
        unit=unit,
        panels=cases,
        diverging=diverging,
        caption=caption,
    )


def _labels(array: xr.DataArray, dim: str) -> tuple[str, ...]:
    numbers = tuple(map(str, array[dim].values.tolist()))
    if dim != "position":
        return numbers
    return tuple(f"{n} {text}" for n, text in zip(numbers, array["token"].values.tolist(), strict=True))


def largest(data: xr.Dataset, parts: Sequence[str]) -> Table:
    """The cells with the largest normalised effects over all parts and cases, with everything known of each."""
    found: list[tuple[float, tuple[Cell, ...]]] = []
    total = 0
    for part in parts:
        effect = data[f"{part}_normalised"]
        total += effect.size
        raw, n = data[part].values, data.sizes["row"]
        percentile = data[f"{part}_percentile"].values
        significant = data[f"{part}_significant"].values
        order = np.argsort(-np.nan_to_num(np.abs(effect.values)), axis=None)[:_TOP]
        for index in zip(*np.unravel_index(order, effect.shape), strict=True):
            place = {str(dim): int(i) for dim, i in zip(effect.dims, index, strict=True)}
            error = raw[index].std(ddof=1) / np.sqrt(n) if n > 1 else float("nan")
            near, far = (float(p[index]) for p in percentile)
            row: tuple[Cell, ...] = (
                f"{part} {_place(effect, place)}",
                str(effect["direction"].values[place["direction"]]),
                float(effect.values[index]),
                float(raw[index].mean()),
                float(error),
                bool(significant[index]),
                near,
                far,
                "beyond" if max(np.nan_to_num([near, far])) > LIMIT else "",
            )
            found.append((abs(float(np.nan_to_num(effect.values[index]))), row))
    found.sort(key=lambda item: -item[0])
    return Table(
        "largest effects",
        (
            "cell",
            "direction",
            "normalised",
            "raw",
            "standard error",
            "significant",
            "site %ile",
            "final %ile",
            "mark",
        ),
        tuple(row for _, row in found[:_TOP]),
        caption=f"the {min(_TOP, total)} largest of {total} cells, each over {data.sizes['row']} prompts; percentiles "
        f"among held-out natural values, marked beyond the {LIMIT:.0f}th",
    )


def _place(array: xr.DataArray, place: dict[str, int]) -> str:
    return ", ".join(f"{dim} {_labels(array, dim)[i]}" for dim, i in place.items() if dim != "direction")


def node_scores(data: xr.Dataset) -> tuple[NodeScores, ...]:
    """How much each head and MLP matters: the mean size, over directions, of its effect at its largest position."""
    scores: dict[str, float] = {}
    for part in data.attrs["parts"]:
        if part not in ("z", "mlp_out"):
            continue
        size = abs(data[f"{part}_normalised"]).mean("direction")
        size = size.max("position") if "position" in size.dims else size
        for place in np.ndindex(*size.shape):
            at = {str(dim): int(size[dim][i]) for dim, i in zip(size.dims, place, strict=True)}
            name = f"z.{at['layer']}.h{at['head']}" if part == "z" else f"mlp_out.{at['layer']}"
            scores[name] = float(size.values[place])
    return (NodeScores(scores),) if scores else ()
