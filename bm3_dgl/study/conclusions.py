"""Plain sentences about a study's numbers, no stronger than these are.

A difference is stated only where the test over users, corrected for the number of comparisons, rejects chance at 5 % and
every seed has it in the same direction. Otherwise no difference could be shown, which is not that there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_LEVEL = 0.05
_FEW = 4  # sentences of "no difference" that are read one by one; more are told as one
_NAMES = {"recall": "Recall", "ndcg": "NDCG"}
_COSTS = {"train_epoch_seconds": "an epoch takes", "peak_pss_bytes": "memory peaks at"}


def conclude(content: Mapping[str, Any]) -> list[str]:
    """Sentences for study.json's content, which is whole but for these."""
    variants, metric = content["variants"], content["metric"]
    base = next(variant for variant in variants if variant["name"] == content["base"])
    if content["view"] == "cost":  # a few epochs, whose metrics say nothing of what the variants are worth
        costs = [text for variant in variants if variant is not base for text in _cost(variant, base)]
        return costs + _missing(variants)
    sentences = []
    if content["axes"] or content["view"] != "table":
        sentences += _chosen(variants, content["chosen"], base["name"], metric)
    if content["view"] == "search":
        variants = [variant for variant in variants if variant["name"] == content["chosen"]]
    equal = [variant for variant in variants if variant["against_base"] is not None and not is_shown(variant["against_base"])]
    if len(equal) > _FEW:
        variants = [variant for variant in variants if variant not in equal]
        sentences += [_none_shown(equal, base["name"])]
    sentences += [text for variant in variants for text in _compared(variant, base["name"])]
    return sentences + _missing(content["variants"])


def name_of(metric: str) -> str:
    """recall@20 -> Recall@20."""
    kind, _, cutoff = metric.partition("@")
    return f"{_NAMES[kind]}@{cutoff}"


def is_shown(against: Mapping[str, Any]) -> bool:
    """Whether a difference is more than chance, by users and by seeds."""
    return against["p_corrected"] < _LEVEL and seeds_agree(against)


def seeds_agree(against: Mapping[str, Any]) -> bool:
    """Whether every seed has the difference in the direction of the mean."""
    return all(difference * against["difference"] > 0 for difference in against["seed_differences"])


def _compared(variant: Mapping[str, Any], base: str) -> list[str]:
    if variant["against_base"] is not None:
        return [_difference(variant["name"], variant["against_base"], base)]
    reason = variant.get("not_compared")
    return [f"{variant['name']} could not be compared with {base}: {reason}."] if reason else []


def _difference(variant: str, against: Mapping[str, Any], base: str) -> str:
    name, mean = name_of(against["metric"]), against["base"] + against["difference"]
    numbers = (
        f"{mean:.4f} against {against['base']:.4f}; interval of the difference over users {against['low']:+.4f} to"
        f" {against['high']:+.4f}; {_p(against['p_corrected'])}{_corrected(against['comparisons'])}"
    )
    seeds = _seeds(against)
    if not is_shown(against):
        return f"{variant}: no difference in test {name} from {base} could be shown ({numbers}); {seeds}."
    verb = "is higher" if against["difference"] > 0 else "is lower"
    amount = f"by {abs(against['relative']):.1%}" if against["relative"] is not None else ""
    return f"{variant}: test {name} {verb} {amount} than with {base} ({numbers}); {seeds}."


def _none_shown(variants: Sequence[Mapping[str, Any]], base: str) -> str:
    """One sentence for many variants of which no difference could be shown, in place of one each."""
    found = [variant["against_base"] for variant in variants]
    differences = [against["difference"] for against in found]
    low, high = min(against["low"] for against in found), max(against["high"] for against in found)
    smallest = min(against["p_corrected"] for against in found)
    seeds = min(len(against["seed_differences"]) for against in found)
    return (
        f"{len(variants)} variants: no difference in test {name_of(found[0]['metric'])} from {base} could be shown"
        f" (differences {min(differences):+.4f} to {max(differences):+.4f}; their intervals over users within {low:+.4f} to"
        f" {high:+.4f}; smallest {_p(smallest)}{_corrected(found[0]['comparisons'])});"
        f" {'one seed, so how far seeds differ is not known' if seeds == 1 else f'at least {seeds} seeds'}."
    )


def _seeds(against: Mapping[str, Any]) -> str:
    count = len(against["seed_differences"])
    if count == 1:
        return "one seed, so how far seeds differ is not known"
    return f"the {count} seeds agree in direction" if seeds_agree(against) else f"the {count} seeds do not all agree"


def _chosen(variants: Sequence[Mapping[str, Any]], chosen: str | None, base: str, metric: str) -> list[str]:
    best = next((variant for variant in variants if variant["name"] == chosen), None)
    if best is None:
        return []
    test = best["test"].get(metric)
    values = ", ".join(f"{key} {_value(value)}" for key, value in best["values"].items())
    detail = f" ({values})" if values and values != chosen else ""
    told = f"; its test value is {test['mean']:.4f}" if test else ""
    note = ", which is the base itself" if chosen == base else ""
    return [f"Best on validation: {chosen}{detail}{note}, {name_of(metric)} {best['valid'][metric]['mean']:.4f}{told}."]


def _cost(variant: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    parts = []
    for key, words in _COSTS.items():
        mine, other = variant["cost"].get(key), base["cost"].get(key)
        if mine and other and other["mean"]:
            unit = (lambda x: f"{x / 2**20:,.0f} MiB") if key.endswith("bytes") else (lambda x: f"{x:.3g} s")
            ratio = mine["mean"] / other["mean"]
            parts.append(f"{words} {unit(mine['mean'])} against {unit(other['mean'])} ({ratio:.2f} times)")
    return [f"{variant['name']}, compared with {base['name']}: {', '.join(parts)}."] if parts else []


def _missing(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    failed = [(variant["name"], run) for variant in variants for run in variant["runs"] if run["status"] == "failed"]
    pending = sum(run["status"] == "pending" for variant in variants for run in variant["runs"])
    sentences = [f"Failed: {name}, seed {run['seed']}: {run['error']}" for name, run in failed]
    return sentences + ([f"Not all is done: {pending} runs are still to come."] if pending else [])


def _p(p: float) -> str:
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def _corrected(comparisons: int) -> str:
    return f", corrected for {comparisons} comparisons" if comparisons > 1 else ""


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
