"""The evaluation as one self-contained page."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment
from torch import Tensor

from ..run.tracking import to_picture
from .metrics import HIGHER_IS_BETTER, METRICS

_CELL = 192
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Evaluation of {{ run }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .3rem .8rem; text-align: right; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
tr { border-bottom: 1px solid #ddd; } .overall { font-weight: 600; } img { display: block; width: 100%; }
figure { margin: 0; } .row { display: grid; gap: .5rem; grid-auto-columns: 1fr; grid-auto-flow: column; }
figcaption { color: #666; font-size: .85rem; }
</style>
<h1>Evaluation of {{ run }}</h1>
<p>PSNR in dB, SSIM and LPIPS against the true b'; direction: cosine between the shown and the made edit in the space
of the image encoder; nearer: share of answers with a higher PSNR than b itself, and its 95 % interval (Wilson's).
{% for m in metrics %}{{ m }} {{ "&uarr;" | safe if arrows[m] else "&darr;" | safe }} {% endfor %}</p>
{% for held_out, contestants in summary.items() %}
<h2>{{ held_out }}</h2>
<table><tr><th>who<th>task<th>analogies<th>nearer{% for m in metrics %}<th>{{ m }}{% endfor %}</tr>
{% for who, scopes in contestants.items() %}{% for scope, means in scopes.items() %}
<tr{% if scope == "overall" %} class="overall"{% endif %}><td>{{ who }}<td>{{ scope }}<td>{{ means.analogies }}<td>
{%- if "nearer" in means %}{{ "%.0f %% (%.0f to %.0f)" | format(100 * means.nearer, 100 * means.nearer_low,
100 * means.nearer_high) }}{% endif %}
{%- for m in metrics %}<td>{{ "" if means[m] is none else "%.3f" | format(means[m]) }}{% endfor %}</tr>
{% endfor %}{% endfor %}</table>
{% for example in examples[held_out] %}
<h3>{{ example.task }}</h3><div class="row">
{% for label, image in example.images.items() %}
<figure><img alt="{{ label }}" src="data:image/jpeg;base64,{{ jpeg(image) }}"><figcaption>{{ label }}
{%- if example.notes.get(label) %}<br>{{ example.notes[label] }}{% endif %}</figcaption></figure>
{%- endfor %}</div>{% endfor %}{% endfor %}
</html>
"""


@dataclass
class Example:
    """An analogy as the page shows it.

    Attributes:
        images: label -> image [H, W, 3] in 0..1.
        notes: label -> what is said below it.
    """

    task: str
    images: dict[str, Tensor]
    notes: dict[str, str] = field(default_factory=dict)


def write_report(path: Path, run: str, summary: dict, examples: dict[str, list[Example]]) -> None:
    """Write the page. Metrics that nobody could be measured by are left out.

    Args:
        summary: as ``metrics.json`` holds it.
        examples: set -> every analogy of it.
    """
    means = [m for contestants in summary.values() for scopes in contestants.values() for m in scopes.values()]
    metrics = [metric for metric in METRICS if any(mean[metric] is not None for mean in means)]
    page = Environment(autoescape=True).from_string(_PAGE)
    html = page.render(
        run=run, summary=summary, examples=examples, metrics=metrics, arrows=HIGHER_IS_BETTER, jpeg=_jpeg
    )
    path.write_text(html, encoding="utf-8")


def _jpeg(image: Tensor) -> str:
    buffer = io.BytesIO()
    to_picture(image, _CELL).save(buffer, "JPEG", quality=88)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
