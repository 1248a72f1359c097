"""The candidates that no other beats in accuracy and in what is minimised, as data and as a drawing."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from jobs.report import Candidate
from jobs.request import Goal
from workers.verdict import megabytes

_WIDTH, _HEIGHT, _MARGIN = 640, 420, 64


def objective(candidate: Candidate, goal: Goal) -> float:
    """What the goal minimises."""
    match goal.minimise:
        case "bytes":
            return candidate.bytes
        case "operations":
            return candidate.operations
        case "latency":
            assert candidate.latency_ms is not None, "searches for latency measure it"
            return candidate.latency_ms


def front(candidates: Sequence[Candidate], goal: Goal) -> tuple[int, ...]:
    """Numbers of those that no other candidate beats, by ascending drop."""
    best: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda each: (each.drop_pp, objective(each, goal), each.number)):
        if not best or objective(candidate, goal) < objective(best[-1], goal):
            best.append(candidate)
    return tuple(candidate.number for candidate in best)


def drawing(candidates: Sequence[Candidate], on_front: Sequence[int], delivered: int, goal: Goal) -> str:
    """An SVG: accuracy lost to the right, what is minimised upwards, the front as a line, the delivered one marked."""
    values = [objective(each, goal) for each in candidates]
    drops = [each.drop_pp for each in candidates] + [goal.max_accuracy_drop_pp]
    left, right = min(0.0, *drops), max(*drops, 0.1)
    top = max(*values, 1e-9)

    def x(drop: float) -> float:
        return round(_MARGIN + (drop - left) / (right - left) * (_WIDTH - 2 * _MARGIN), 1)

    def y(value: float) -> float:
        return round(_HEIGHT - _MARGIN - value / top * (_HEIGHT - 2 * _MARGIN), 1)

    by_number = {each.number: each for each in candidates}
    line = " ".join(f"{x(by_number[n].drop_pp)},{y(objective(by_number[n], goal))}" for n in on_front)
    limit = x(goal.max_accuracy_drop_pp)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<path d="M{_MARGIN},{_MARGIN} V{_HEIGHT - _MARGIN} H{_WIDTH - _MARGIN}" fill="none" stroke="black"/>',
        f'<path d="M{limit},{_MARGIN} V{_HEIGHT - _MARGIN}" stroke="#b00" stroke-dasharray="4"/>',
        f'<text x="{limit}" y="{_MARGIN - 8}" text-anchor="middle" fill="#b00">limit {goal.max_accuracy_drop_pp} pp</text>',
        f'<polyline points="{line}" fill="none" stroke="#06c"/>',
    ]
    for candidate in candidates:
        cx, cy = x(candidate.drop_pp), y(objective(candidate, goal))
        colour = "#06c" if candidate.number in on_front else "#999"
        radius = 6 if candidate.number == delivered else 3
        label = f"{candidate.number}: {candidate.drop_pp:.2f} pp, {shown(objective(candidate, goal), goal)}"
        parts.append(
            f'<circle cx="{cx}" cy="{cy}" r="{radius}" fill="{colour}"><title>{escape(label)}</title></circle>'
        )
    parts += [
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 20}" text-anchor="middle">accuracy lost on selection images, pp</text>',
        f'<text x="{_MARGIN}" y="{_HEIGHT - _MARGIN + 16}" text-anchor="middle">{left:.2f}</text>',
        f'<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - _MARGIN + 16}" text-anchor="middle">{right:.2f}</text>',
        f'<text x="{_MARGIN - 6}" y="{_MARGIN + 4}" text-anchor="end">{escape(shown(top, goal))}</text>',
        f'<text x="{_MARGIN - 6}" y="{_HEIGHT - _MARGIN}" text-anchor="end">0</text>',
        f'<text x="16" y="{_HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 16 {_HEIGHT / 2})">{goal.minimise}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def shown(value: float, goal: Goal) -> str:
    """What is minimised as a reader wants it."""
    match goal.minimise:
        case "bytes":
            return megabytes(int(value))
        case "operations":
            return f"{value / 1e9:.3f} G bit operations"
        case "latency":
            return f"{value:.3f} ms"
