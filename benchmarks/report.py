"""The results as Markdown and as a plot. In: the dictionary that the suite fills."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Name in the results -> what it says, target, moonshot, and whether more is better.
TARGETS: dict[str, tuple[str, float, float, bool]] = {
    "epoch_features_8192": ("epoch with features, global batch 8192, against the transcription", 40, 80, True),
    "epoch_features_2048": ("epoch with features, global batch 2048, against the transcription", 8, 15, True),
    "epoch_nofeatures_8192": ("epoch without features, global batch 8192, against the transcription", 18, 40, True),
    "ranking": ("full ranking against matmul + topk", 5, 10, True),
    "ranks_2_over_1": ("two ranks against one", 1.7, 1.9, True),
    "growth_10x_per_edge": ("time per edge, largest graph against smallest", 1.5, 1.1, False),
    "baby_time_to_accuracy": ("time to the transcription's best Recall@20", 5, 20, True),
    "job_pss_gb": ("memory of the whole job, GB", 3.2, 2.0, False),
    "startup_seconds": ("start-up to the first step, s", 20, 8, False),
    "bandwidth_fraction": ("propagation, share of the measured bandwidth", 0.5, 0.8, True),
}
_PHASES = ("propagate", "exchange", "features", "head", "backward", "propagate_back", "optimizer", "waiting", "other")


def markdown(results: dict) -> str:
    """The whole report."""
    return "\n".join(
        [*_opening(results), *_targets(results), *_jobs(results), *_phases(results), *_limits(results), *_rest(results)]
    )


def _opening(results: dict) -> Iterator[str]:
    data, machine = results["data"], results["machine"]
    size = "" if data["scale"] == 1 else f" **Not the full size: {data['scale']:g} of it; the targets are for 1.**"
    yield f"# Benchmarks, {results['date']}\n"
    yield f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB; {machine['versions']}.\n"
    yield (
        f"A made-up graph of {data['users']:,} users, {data['items']:,} items, {data['interactions']:,} interactions"
        f" ({data['train']:,} to train on).{size} The whole took {results['seconds'] / 60:.1f} min.\n"
    )
    for failure in results["failures"]:
        yield f"FAILED: {failure.splitlines()[0]}\n"


def _targets(results: dict) -> Iterator[str]:
    yield from _head("what", "measured", "target", "moonshot", "met")
    for name, (text, target, moonshot, more) in TARGETS.items():
        value = results["ratios"].get(name, results.get(name))
        met = (
            "-" if value is None else next((word for word, goal in _goals(target, moonshot) if _meets(value, goal, more)), "no")
        )
        yield _row(text, _number(value), *(f"{'>=' if more else '<='} {goal:g}" for goal in (target, moonshot)), met)
    yield ""


def _goals(target: float, moonshot: float) -> Sequence[tuple[str, float]]:
    return ("moonshot", moonshot), ("yes", target)


def _meets(value: float, goal: float, more: bool) -> bool:
    return value >= goal if more else value <= goal


def _jobs(results: dict) -> Iterator[str]:
    yield "## Step, epoch, memory\n"
    columns = ("features", "global batch", "ranks", "step s", "epoch s", "epoch ratio", "PSS GB", "PSS ratio", "start-up s")
    yield from _head("engine", *columns)
    for name, peer in results["transcription"].items():
        if peer:
            features = "trainable" if name == "features" else name
            seconds = (_number(peer["seconds_per_step"]), _number(peer["epoch_seconds"]), "1")
            yield _row("transcription", features, 2048, "-", *seconds, _number(peer["pss_bytes"] / 1e9), "1", "-")
    for label, entry in _entries(results):
        yield _row(
            label,
            *(entry["features"], f"{entry['batch']:g}", f"{entry['ranks']:g}"),
            *(_number(entry[name]) for name in ("step_seconds", "epoch_seconds", "ratio_epoch")),
            *(_number(value) for value in (entry["pss_bytes"] / 1e9, entry["ratio_pss"], entry["startup_seconds"])),
        )
    yield ""


def _phases(results: dict) -> Iterator[str]:
    yield "## Phases of a step, ms, mean over the ranks\n"
    yield from _head("engine", "features", "global batch", "ranks", *_PHASES)
    for label, entry in _entries(results):
        phases = [_number(1e3 * entry["phases"].get(name, 0.0)) for name in _PHASES]
        yield _row(label, entry["features"], f"{entry['batch']:g}", f"{entry['ranks']:g}", *phases)
    yield ""


def _entries(results: dict) -> Iterator[tuple[str, dict]]:
    for entry in results["exact"]:
        yield "exact", entry
    for entry in results["sampled"]:
        yield f"sampled {','.join(map(str, entry['fanouts']))}", entry


def _limits(results: dict) -> Iterator[str]:
    if "cost" not in results:
        return
    ceiling, costs = results["ceiling"], results["cost"]
    yield "## Against the machine: residual, global batch 8192, 2 ranks\n"
    yield (
        f"Memory: {ceiling['sum_bytes'] / 1e9:.1f} GB/s summed in order, {ceiling['triad_bytes'] / 1e9:.1f} GB/s triad,"
        f" {ceiling['gather_bytes'] / 1e9:.1f} GB/s random rows. Products: {ceiling['gemm'] / 1e9:.0f} GFLOP/s square,"
        f" {ceiling['gemm_project'] / 1e9:.0f} the projection's shape, {ceiling['gemm_project_back'] / 1e9:.0f} its gradient's."
        f" Propagation reaches {costs['bandwidth_fraction']:.0%} of the sum's speed, the head {costs['gemm_fraction']:.0%}"
        " of the square product's.\n"
    )
    yield from _head("phase", "MB", "GFLOP", "least ms by the model", "measured ms", "ratio")
    for name, line in costs["phases"].items():
        seconds, least = line["seconds"], line["model_seconds"]
        ratio = seconds / least if seconds and least else None
        sizes = (_number(line["num_bytes"] / 1e6), _number(line["operations"] / 1e9))
        yield _row(name, *sizes, _number(1e3 * least), _number(None if seconds is None else 1e3 * seconds), _number(ratio))
    yield ""


def _rest(results: dict) -> Iterator[str]:
    data = results["data"]
    yield "## Around training\n"
    yield from _head("what", "transcription s", "job s", "ratio")
    yield _row("make and write the dataset", "-", _number(data["prepare_seconds"]), "-")
    yield _row("partition", "-", _number(data["partition_seconds"]), "-")
    theirs, ours = results["transcription"]["none"].get("evaluate_seconds"), results["evaluation"]
    yield _row("evaluation, validation split", _number(theirs), _number(ours), _number(theirs and ours and theirs / ours))
    if ranked := results["ranking"]:
        yield _row("ranking", *(_number(ranked[name]) for name in ("plain_seconds", "exact_seconds", "ratio")))
    if shop := results["baby"]:
        yield from _baby(shop)
    yield ""
    if results["growth"]:
        yield from _growth(results["growth"])


def _baby(shop: dict) -> Iterator[str]:
    peer = shop["transcription"]
    label = f"{shop['data']}: to validation Recall@20 {peer['best_recall']:.4f}"
    for entry in shop["job"]:
        seconds, text = entry["seconds"], f"{label}, batch {entry['batch']}, rate {entry['learning_rate']:g}"
        theirs = peer["seconds_to_best"]
        yield _row(text, _number(theirs), _number(seconds), _number(seconds and theirs / seconds))
        whole, theirs = entry["seconds_with_startup"], theirs + peer["startup_seconds"]
        yield _row("the same with start-up", _number(theirs), _number(whole), _number(whole and theirs / whole))


def _growth(scales: list[dict]) -> Iterator[str]:
    yield "## Growth: narrow features, global batch 8192, 2 ranks\n"
    columns = ("step s", "step ns per edge", "propagation ns per edge", "PSS bytes per node", "partition s", "start-up s")
    yield from _head("scale", "nodes", "edges", *columns)
    names = ("step_seconds", "step_ns_per_edge", "propagation_ns_per_edge", "pss_bytes_per_node")
    for entry in scales:
        values = [_number(entry[name]) for name in (*names, "partition_seconds", "startup_seconds")]
        yield _row(f"{entry['scale']:g}", f"{entry['nodes']:,}", f"{entry['edges']:,}", *values)
    yield ""


def _head(*columns: str) -> Iterator[str]:
    yield _row(*columns)
    yield "|" + "---|" * len(columns)


def _row(*cells: Any) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plot(results: dict, path: Path) -> None:
    """Phases of every trial as bars, and the measured ratios as shares of their targets."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, 6), width_ratios=(3, 2))
    entries = list(_entries(results))
    labels = [f"{label} {entry['features']} {entry['batch']:g} x{entry['ranks']:g}" for label, entry in entries]
    begins = [0.0] * len(entries)
    for name in _PHASES:
        widths = [1e3 * entry["phases"].get(name, 0.0) for _, entry in entries]
        left.barh(labels, widths, left=begins, label=name)
        begins = [begin + width for begin, width in zip(begins, widths, strict=True)]
    left.invert_yaxis()
    left.set_xlabel("ms per step")
    left.legend(fontsize="small")
    measured = {name: results["ratios"].get(name, results.get(name)) for name in TARGETS}
    known = {name: value for name, value in measured.items() if value}
    shares = [value / TARGETS[name][1] if TARGETS[name][3] else TARGETS[name][1] / value for name, value in known.items()]
    right.barh(list(known), shares, color=["tab:green" if share >= 1 else "tab:orange" for share in shares])
    right.axvline(1, color="black")
    right.invert_yaxis()
    right.set_xlabel("of the target (1 = met)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
