"""What fitted temperatures come to, in words."""

from collections.abc import Mapping
from typing import Any

_RULES = {
    "labels": "by the judgements of {labelled:,} of them",
    "entropy": "so that the teacher looks at ten passages ({labelled:,} are judged)",
}


def fitted_line(found: Mapping[str, Any]) -> str:
    """One line on a fit, or on the temperatures that a resumed run began with."""
    if found.get("resumed"):
        return ", ".join(f"{n} {value:g}" for n, value in found["temperatures"].items()) + ", as the run began with"
    rule = _RULES[found["rule"]].format(**found)
    where = "of the whole corpus" if found["whole_corpus"] else "of each list"
    sides = [f"{side} {_side(found[side])}" for side in ("teacher", "student")]
    about = f"{found['queries']:,} train lists, {found['passages']:,.0f} passages {where}, {rule}"
    return f"temperatures of {', '.join(sides)}; KL {found['divergence']:.3g}; {about}"


def _side(found: Mapping[str, float]) -> str:
    spread = f"scores' standard deviation {found['spread']:.2g}"
    entropy = f"entropy {found['entropy']:.2f}, {found['entropy_share']:.0%} of the highest"
    return f"{found['temperature']:g} ({spread}; {entropy}; weight of the first {found['first']:.2f})"
