"""The evaluation as one self-contained page."""

import base64
import io
from pathlib import Path

from jinja2 import Environment
from torch import Tensor

from .metrics import HIGHER_IS_BETTER, METRICS
from .tracking import to_picture

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
of the image encoder. {% for m, up in arrows.items() %}{{ m }} {{ "↑" if up else "↓" }} {% endfor %}</p>
{% for held_out, contestants in summary.items() %}
<h2>{{ held_out }}</h2>
<table><tr><th>who<th>task<th>analogies{% for m in metrics %}<th>{{ m }}{% endfor %}</tr>
{% for who, scopes in contestants.items() %}{% for scope, means in scopes.items() %}
<tr{% if scope == "overall" %} class="overall"{% endif %}><td>{{ who }}<td>{{ scope }}<td>{{ means.analogies }}
{%- for m in metrics %}<td>{{ "–" if means[m] is none else "%.3f" | format(means[m]) }}{% endfor %}</tr>
{% endfor %}{% endfor %}</table>
{% for task, images in examples[held_out] %}
<h3>{{ task }}</h3><div class="row">
{% for label, data in images.items() %}
<figure><img alt="{{ label }}" src="data:image/jpeg;base64,{{ data }}"><figcaption>{{ label }}</figcaption></figure>
{%- endfor %}</div>{% endfor %}{% endfor %}
</html>
"""


def write_report(path: Path, run: str, summary: dict, examples: dict[str, list[tuple[str, dict[str, Tensor]]]]) -> None:
    """Write the page.

    Args:
        summary: as ``metrics.json`` holds it.
        examples: held-out set -> (task, label -> image [H, W, 3] in 0..1) of every analogy.
    """
    encoded = {
        name: [(task, {label: _jpeg(image) for label, image in images.items()}) for task, images in rows]
        for name, rows in examples.items()
    }
    page = Environment(autoescape=True).from_string(_PAGE)
    html = page.render(run=run, summary=summary, examples=encoded, metrics=METRICS, arrows=HIGHER_IS_BETTER)
    path.write_text(html, encoding="utf-8")


def _jpeg(image: Tensor) -> str:
    buffer = io.BytesIO()
    to_picture(image, _CELL).save(buffer, "JPEG", quality=88)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
